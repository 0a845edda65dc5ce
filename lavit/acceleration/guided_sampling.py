"""The release's guided sampling of image tokens, both streams in one pass a token and no pass over suppressed ids.

transformers' ``generate`` runs the language model twice a token: the prompt's stream, and the unconditional one inside
a logits processor. Here the unconditional streams are further rows of the batch. The distribution is the same, and so
are the random numbers drawn: the same seed gives the same ids, but where rounding decides.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lavit.acceleration.structure import has_hooks

BEGIN, END, FIRST_CODE = 32000, 32001, 32002
FIRST_SUPPRESSED, FIRST_ALLOWED = 3, BEGIN

# What generation configurations may ask for beside what is done here, and the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "typical_p": (None, 1.0),
    "min_p": (None,),
    "top_h": (None,),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "bad_words_ids": (None,),
    "force_words_ids": (None,),
    "constraints": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "forced_decoder_ids": (None,),
    "begin_suppress_tokens": (None,),
    "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,),
    "penalty_alpha": (None,),
    "diversity_penalty": (None, 0.0),
    "min_length": (None, 0),
    "max_time": (None,),
    "stop_strings": (None,),
    "watermarking_config": (None,),
    "dola_layers": (None,),
    "remove_invalid_values": (None, False),
    "renormalize_logits": (None, False),
}


def neutral(language_model: Any) -> bool:
    """Whether the model's generation configuration asks for nothing that the release's call does not set."""
    config = getattr(language_model, "generation_config", None)
    return all(getattr(config, name, None) in values for name, values in NEUTRAL.items())


@dataclass(frozen=True)
class Draw:
    """How a token is drawn: guidance, then T, then the top k, then the nucleus; [/IMG] not before ``min_tokens``."""

    guidance: float
    temperature: float
    top_k: int | None
    top_p: float | None
    min_tokens: int
    max_tokens: int

    def allowed(self, conditional: Tensor, unconditional: Tensor, number: int, end: int) -> Tensor:
        """Scores of token ``number`` from both streams' logits (R, A); column ``end`` is [/IMG]'s.

        The release mixes log-softmaxes; these are the logits less a number for the row, which no later step sees.
        """
        scores = unconditional + self.guidance * (conditional - unconditional)
        if number < self.min_tokens:
            scores[:, end] = -torch.inf
        if self.temperature != 1:
            scores = scores / self.temperature
        if self.top_k:
            least = scores.topk(min(self.top_k, scores.shape[-1])).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = scores.sort(dim=-1)
            cut = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
            cut[:, -1] = False
            scores = scores.masked_fill(cut.scatter(1, order, cut), -torch.inf)
        return scores


def guided_ids(language_model: Any, ids: Tensor, mask: Tensor, copies: int, pad: int, draw: Draw) -> Tensor:
    """Prompts (B, L), padded at the left, their last id [IMG], mask (B, L) -> (B * copies, 1 + T) ids, [IMG] first.

    A row that has drawn [/IMG] is padded with ``pad``. The host waits once a token, from the first that may be the end.
    """
    batch, longest = ids.shape
    rows = batch * copies
    # The unconditional stream is [IMG] alone. It stands first in its row, and what follows there is never looked at:
    # padding before it would be rows without a key, which eager attention in float16 may turn into NaN.
    alone = ids[-1:, -1:].expand(1, longest)
    mask = torch.cat((mask, torch.ones_like(mask[:1])))
    positions = (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 1)
    hidden, cache = _pass(language_model, torch.cat((ids, alone)), mask, positions, None)
    hidden = torch.cat((hidden[:batch, -1], hidden[batch:, 0]))
    mask[batch, 1:], positions[batch, -1] = 0, 0
    of = torch.arange(batch, device=ids.device).repeat_interleave(copies, output_size=rows)
    of = torch.cat((of, torch.full_like(of, batch)))
    hidden = hidden[of.to(hidden.device)]
    advance = _advance(language_model, cache, mask, positions[:, -1:], of, draw.max_tokens)
    head = _Head(language_model.lm_head)
    drawn = [torch.full((rows,), BEGIN, dtype=torch.int64, device=ids.device)]
    unfinished = torch.ones_like(drawn[0], dtype=torch.bool)
    for number in range(draw.max_tokens):
        if number:
            hidden = advance(drawn[-1].repeat(2))
        conditional, unconditional = head(hidden).to(ids.device).chunk(2)
        scores = draw.allowed(conditional, unconditional, number, head.end)
        token = drawn_from(head.spread(scores.softmax(dim=-1)))
        token = token.where(unfinished, pad)
        drawn.append(token)
        unfinished = unfinished & (token != END)
        if number >= draw.min_tokens and not unfinished.any():
            break
    return torch.stack(drawn, dim=1)


def drawn_from(probabilities: Tensor) -> Tensor:
    """(R, V) -> (R,) ids, those of ``torch.multinomial(probabilities, 1)`` by its numbers and its way, the least of
    exponential variables over p, without its looks at the values, for each of which the host waits."""
    return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(dim=-1)


class _Head:
    """The language model's head on the ids that are not suppressed, where it is a plain linear layer."""

    end = FIRST_SUPPRESSED + END - FIRST_ALLOWED

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.plain = type(layer) is torch.nn.Linear and layer.bias is None and not has_hooks(layer)
        self.parts = layer.weight[:FIRST_SUPPRESSED], layer.weight[FIRST_ALLOWED:]

    def __call__(self, hidden: Tensor) -> Tensor:
        """(R, C) -> float32 logits (R, A) of ids 0 to 2 and from 32000 on."""
        if self.plain:
            logits = torch.cat([F.linear(hidden, part) for part in self.parts], dim=-1)
        else:
            logits = self.layer(hidden)
            logits = torch.cat((logits[:, :FIRST_SUPPRESSED], logits[:, FIRST_ALLOWED:]), dim=-1)
        return logits if logits.dtype == torch.float64 else logits.float()

    def spread(self, probabilities: Tensor) -> Tensor:
        """(R, A) -> (R, V), 0 at the suppressed ids, so that a draw takes the same random numbers as the release's."""
        low, high = probabilities.split((FIRST_SUPPRESSED, probabilities.shape[1] - FIRST_SUPPRESSED), dim=1)
        none = probabilities.new_zeros(len(probabilities), FIRST_ALLOWED - FIRST_SUPPRESSED)
        return torch.cat((low, none, high), dim=1)


def _advance(
    language_model: Any, cache: Any, mask: Tensor, positions: Tensor, of: Tensor, max_tokens: int
) -> Callable[[Tensor], Tensor]:
    """What reads one token more of each stream: ids (R,) -> the last layer's states (R, C).

    By this library's own cache for transformers' LLaMA of today, as it is made; else by the model's passes.
    mask: (B, L), positions: (B, 1) of the last token; of: (R,) the prompt of each stream.
    """
    if steppable(language_model, cache):
        from lavit.language.cache import KeyValueCache

        steps = KeyValueCache(language_model, cache, mask.bool(), of, max(1, max_tokens - 1))
        fed = itertools.count()
        return lambda ids: steps.step(ids, next(fed))
    cache, mask, positions = _rows(cache, of), mask[of], positions[of]
    one = mask.new_ones(len(mask), 1)

    def advance(ids: Tensor) -> Tensor:
        nonlocal cache, mask, positions
        mask, positions = torch.cat((mask, one), dim=1), positions + 1
        hidden, cache = _pass(language_model, ids[:, None], mask, positions, cache)
        return hidden[:, -1]

    return advance


def steppable(language_model: Any, cache: Any) -> bool:
    """Whether ``KeyValueCache`` does what a pass of the model does: no class of another origin, no hook, one device."""
    try:
        from transformers.cache_utils import DynamicCache, DynamicLayer
        from transformers.models.llama import modeling_llama as llama

        from lavit.language.configuration import check_rotation

        check_rotation(language_model.config)
    except (ImportError, AttributeError, ValueError):
        return False
    inner = language_model.model
    known = type(language_model) is llama.LlamaForCausalLM and type(inner) is llama.LlamaModel
    known = known and all(
        type(layer) is llama.LlamaDecoderLayer
        and type(layer.self_attn) is llama.LlamaAttention
        and all(type(n) is llama.LlamaRMSNorm for n in (layer.input_layernorm, layer.post_attention_layernorm))
        for layer in inner.layers
    )
    return (
        known
        and type(inner.norm) is llama.LlamaRMSNorm
        and not language_model.training
        and len({parameter.device for parameter in inner.parameters()}) == 1
        and not any(has_hooks(module) for module in inner.modules())
        and type(cache) is DynamicCache
        and all(type(layer) is DynamicLayer for layer in cache.layers)
    )


def _pass(language_model: Any, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """The last layer's states (R, L, C) of a pass over ids (R, L), and the cache that holds them."""
    inner = language_model.model
    name = "cache" if "cache" in inspect.signature(inner.forward).parameters else "past_key_values"
    out = inner(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **{name: cache})
    return out.last_hidden_state, getattr(out, name)


def _rows(cache: Any, of: Tensor) -> Any:
    """The cache with row ``of[r]`` in the place of row r: transformers' object, or its older tuples of keys, values."""
    if hasattr(cache, "reorder_cache"):
        cache.reorder_cache(of)
        return cache
    return tuple(tuple(x.index_select(0, of.to(x.device)) for x in layer) for layer in cache)
