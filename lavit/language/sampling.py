"""Image tokens from a language model: both streams of guidance in one pass a token, every sample by its own seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from lavit.kernels import Ragged, pad
from lavit.kernels.checks import as_seeds, check_shape
from lavit.kernels.gumbel_select import SEED_RANGE
from lavit.kernels.types import compute_dtype
from lavit.language.cache import CACHE, KeyValueCache, PromptCache
from lavit.language.generation_inputs import check_fault, embed_prompts, first_fault, first_of_rows
from lavit.language.guidance import SamplingSettings, draw, guided_scores, image_head, uniforms
from lavit.language.vocabulary import Vocabulary

# In the place of a code: the scores had no finite best.
FAULT = -2

# Recording costs about two passes: not worth it for fewer.
FEWEST_RECORDED = 8


@torch.no_grad()
def sample_image_tokens(
    language_model: LlamaForCausalLM,
    vocabulary: Vocabulary,
    prompts: Ragged,
    settings: SamplingSettings | None = None,
    *,
    seeds: Tensor | Sequence[int] | None = None,
    max_codes: int,
    of: Sequence[int] | None = None,
) -> Ragged:
    """Draw the codes of one image, or several, for each prompt.

    prompts: B prompts that end with [IMG], as embeddings (T, H) or as int64 ids (T,). settings: the release's by
        default. seeds: (B * num_samples,) int64, the samples of a prompt one after the other; drawn from torch's
        generator of the device if None. max_codes: positions of the tokenizer's decoder; there are never more codes,
        whatever ``settings.max_tokens`` and the prompt's length. of: B' prompts to draw for, each a place in
        ``prompts``, which may come several times and is read once; None: 0 to B - 1. Then B is B' in what follows.

    Returns B * num_samples sequences of codes 0..K-1 without [/IMG], int64, ordered as the seeds. A sample ends where
    [/IMG] is drawn, or with its last code when there is no place for another. Allowed are [/IMG] and the codes; the
    release also leaves ids 0 to 2 and [IMG], which mean nothing inside an image.

    A sample's random numbers depend on its seed alone, and its scores on no other sample: its codes are the same in
    any batch, alone or beside longer prompts, as far as the sums are. Matrix products of other sizes may add in another
    order. Where a random number falls within that rounding of the border between two codes, or two codes within it of
    the last place of the top k, the code can differ, and what follows it: the chance is about the scores' rounding
    times the candidates, next to nothing in float64, rare in float32, common in bfloat16. The same call again on the
    same device gives the same codes.

    Each prompt is read once, whatever the number of its samples, and then all streams go through the model together,
    one pass a token. Samples that have ended leave the batch when they are the greater part of it. Once every
    ``settings.check_every`` tokens the host waits for the device.

    Raises ValueError naming the prompt that is empty or too long for the model (with room for the codes), or holds an
    id outside the vocabulary; for a vocabulary larger than the model's, wrong ``seeds``, ``max_codes`` < 1, a model in
    training mode with dropout or gradient checkpointing, which has no cache, and one whose rotation depends on the
    batch (``check_rotation``). Raises NonFiniteScores, a ValueError with the numbers of prompt and token, where the
    best score is NaN or infinite: of several the first token, and the first prompt among those of it.
    """
    settings = settings or SamplingSettings()
    if max_codes < 1:
        raise ValueError(f"max_codes: expected a number >= 1, got {max_codes}")
    checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in language_model.modules())
    if language_model.training and (checkpointing or language_model.config.attention_dropout):
        raise ValueError("language_model: expected evaluation mode, got training with checkpointing or dropout")
    count = min(settings.max_tokens, max_codes)
    embedded, _ = embed_prompts(language_model, vocabulary, prompts, count, image=True)
    if of is not None and not (len(of) and all(0 <= place < embedded.batch_size for place in of)):
        raise ValueError(f"of: expected places 0 to {embedded.batch_size - 1} of prompts, at least one, got {list(of)}")
    places = torch.arange(embedded.batch_size) if of is None else torch.tensor(of)
    samples = len(places) * settings.num_samples
    device = embedded.values.device
    rows = places.repeat_interleave(settings.num_samples).to(device, non_blocking=True)
    running = _Running(language_model, vocabulary, embedded, rows, settings, _seeds(seeds, samples, device), count)
    codes = torch.empty(samples, count, dtype=torch.int64, device=device)
    lengths = torch.empty(samples, dtype=torch.int64, device=device)
    _run(running, codes, lengths)
    return first_of_rows(codes, lengths)


@torch.inference_mode()
def _run(running: _Running, codes: Tensor, lengths: Tensor) -> None:
    """Draw to the end: codes (R, count) and lengths (R,) are written."""
    settings, count = running.settings, codes.shape[1]
    advance: Callable[[int | None], None] = running.advance
    for token in range(1, count):
        if token % settings.check_every == 0:
            left = running.left()
            if left == 0:
                break
            if left <= len(running.sample) // 2:
                running.write(codes, lengths)
                running.keep_unfinished()
                advance = running.advance
        if advance == running.advance and _worth_recording(settings, codes.device, count - token):
            advance = _recorded(running, codes.device)
        else:
            advance(token)
    running.left()
    running.write(codes, lengths)


def _seeds(seeds: Tensor | Sequence[int] | None, samples: int, device: torch.device) -> Tensor:
    if seeds is None:
        return torch.randint(*SEED_RANGE, (samples,), dtype=torch.int64, device=device)
    seeds = as_seeds("seeds", seeds, None if isinstance(seeds, Tensor) else device)
    check_shape("seeds", seeds, (samples,), "prompts times num_samples")
    if seeds.device != device:
        raise ValueError(f"seeds: expected device {device} to match prompts, got {seeds.device}")
    return seeds


class _Running:
    """The samples under way. Guided, rows 0 to R - 1 of the cache are after the prompts and R to 2R - 1 after [IMG].

    sample: (R,) which one each is; number: (R, count) its random numbers; codes: (R, count), written so far, -1 for
    [/IMG], -2 for scores without a finite best, and arbitrary after these; choice: (R,) last drawn, 1 + what is in
    codes; place: (1,) of the code to be drawn. Looks find the lengths in the codes, so that no token counts them.
    """

    def __init__(
        self,
        language_model: LlamaForCausalLM,
        vocabulary: Vocabulary,
        prompts: Ragged,
        rows: Tensor,
        settings: SamplingSettings,
        seeds: Tensor,
        count: int,
    ) -> None:
        self.settings = settings
        self.first_id = vocabulary.end_id
        self.weight, self.bias = image_head(language_model.lm_head, vocabulary)
        device = prompts.values.device
        if settings.guided:
            begin = language_model.model.embed_tokens.weight[vocabulary.begin_id]
            end = prompts.cu_seqlens[-1:] + 1
            prompts = Ragged(
                torch.cat((prompts.values, begin[None])), torch.cat((prompts.cu_seqlens, end)), prompts.max_seqlen
            )
            rows = torch.cat((rows, torch.full_like(rows, prompts.batch_size - 1)))
        padded, mask, position_ids = pad(prompts, side="left")
        read = PromptCache(mask)
        hidden = language_model.model(
            inputs_embeds=padded, attention_mask=mask, position_ids=position_ids, use_cache=True, **{CACHE: read}
        ).last_hidden_state[:, -1]
        self.cache = KeyValueCache(language_model, read, mask, rows, max(1, count - 1))
        self.samples = len(seeds)
        self.sample = torch.arange(len(seeds), device=device)
        self.number = uniforms(seeds, count)
        self.codes = torch.empty(len(seeds), count, dtype=torch.int64, device=device)
        self.choice = torch.zeros_like(self.sample)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self._draw(hidden[rows], 0)

    def advance(self, token: int | None) -> None:
        """Read the last token of every stream and draw the next: number ``token``, None when it is being recorded."""
        ids = self.choice + self.first_id
        if self.settings.guided:
            ids = torch.cat((ids, ids))
        self._draw(self.cache.step(ids, None if token is None else token - 1), token)

    def _draw(self, hidden: Tensor, token: int | None) -> None:
        scores = F.linear(hidden, self.weight, self.bias)
        scores = scores.to(compute_dtype(scores))
        if self.settings.guided:
            conditional, unconditional = scores.chunk(2)
            scores = guided_scores(conditional, unconditional, self.settings.guidance)
        if token is None:
            scores[:, :1].masked_fill_(self.place < self.settings.min_tokens, -torch.inf)
        elif token < self.settings.min_tokens:
            scores[:, 0] = -torch.inf
        self.choice.copy_(draw(scores, self.number.index_select(1, self.place)[:, 0], self.settings))
        self.codes.index_copy_(1, self.place, self.choice[:, None] - 1)
        self.place += 1

    def left(self) -> int:
        """How many have not ended. Raises NonFiniteScores for one whose end is a fault. The host waits."""
        length, done = self._ends()
        last = self.codes.gather(1, length.clamp(max=self.codes.shape[1] - 1)[:, None])[:, 0]
        fault = first_fault(done & (last == FAULT), length, self.sample, self.samples)
        left, first = torch.stack(((~done).sum(), fault)).tolist()
        check_fault(first, self.samples, self.settings.num_samples)
        return int(left)

    def _ends(self) -> tuple[Tensor, Tensor]:
        """(R,) codes of each sample before its end, and (R,) bool whether it has ended."""
        drawn = torch.arange(self.codes.shape[1], device=self.codes.device) < self.place
        going_on = ((self.codes >= 0) & drawn).long().cumprod(1)
        length = going_on.sum(1)
        return length, length < self.place

    def write(self, codes: Tensor, lengths: Tensor) -> None:
        """What is drawn so far, to these samples' places."""
        codes[self.sample] = self.codes
        lengths[self.sample] = self._ends()[0]

    def keep_unfinished(self) -> None:
        rows = (~self._ends()[1]).nonzero()[:, 0]
        self.cache.select(torch.cat((rows, rows + len(self.sample))) if self.settings.guided else rows)
        for name in ("sample", "number", "codes", "choice"):
            setattr(self, name, getattr(self, name)[rows])


def _worth_recording(settings: SamplingSettings, device: torch.device, tokens: int) -> bool:
    return settings.record and device.type == "cuda" and tokens >= FEWEST_RECORDED


def _recorded(running: _Running, device: torch.device) -> Callable[[int | None], None]:
    """Draw a token, and record the same work over all slots for those after it."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        running.advance(None)  # libraries allocate what they need in a first run, which a recording may not
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        running.advance(None)
    return lambda _: graph.replay()
