"""Text after packed prompts: transformers' own beam search, with the ids of images suppressed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from lavit.kernels import Ragged, pad
from lavit.language.cache import CACHE, PromptCache
from lavit.language.generation_inputs import check_fault, embed_prompts, first_fault, first_of_rows
from lavit.language.vocabulary import Vocabulary


class TextOnly(LogitsProcessor):
    """Suppresses every id that is not text, and notes for each token which text had no finite best score.

    After the log-softmax over all ids, as in the release: what a beam gives to images counts against it. transformers'
    ``suppress_tokens`` scores the same, 26 times slower on a CPU: it compares every id with a list of them.
    """

    supports_continuous_batching = False

    def __init__(self, vocabulary: Vocabulary, eos_id: int) -> None:
        self.text_size = vocabulary.text_size
        self.eos_id = eos_id
        self.faults: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.text_size :] = -torch.inf
        # A text that has ended is fed on beside the others; what comes of that is no fault.
        bad = ~(scores.amax(1).isfinite() | (input_ids == self.eos_id).any(1))
        row = torch.arange(len(bad), device=bad.device)
        self.faults.append(first_fault(bad, input_ids.shape[1], row, len(bad)))
        return scores


def without_unused(logits: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Rows of the head that stand for no id take no part in the softmax: -inf at these of logits (..., V), in place."""
    logits[..., vocabulary.size :] = -torch.inf
    return logits


@torch.no_grad()
def generate_text(
    language_model: LlamaForCausalLM,
    vocabulary: Vocabulary,
    prompts: Ragged,
    *,
    num_beams: int = 2,
    min_new: int = 8,
    max_new: int = 36,
    length_penalty: float = 1.0,
    eos_id: int,
) -> Ragged:
    """The best beam's text for each prompt.

    prompts: B prompts as embeddings (T, H) or int64 ids (T,). num_beams, min_new, max_new, length_penalty: the
    release's for captions by default (2 beams, 8 to 36 tokens); for answers 5 beams, 2 to 10 tokens and length penalty
    0. A beam's score is its log-probability over its length to the power ``length_penalty``. eos_id: the text id that
    ends a text; not before ``min_new`` tokens.

    Returns B sequences of text ids 0..text_size-1 without ``eos_id``, int64. They do not depend on the other prompts
    of the batch beyond rounding (see ``sample_image_tokens``).
    Raises ValueError for a number out of range, for a model whose rotation depends on the batch (``check_rotation``),
    and naming the prompt that is empty, too long or holds an id outside the vocabulary. Raises NonFiniteScores, a
    ValueError with the numbers of prompt and token, where a beam's best score is NaN or infinite.
    """
    for name, number in (("num_beams", num_beams), ("max_new", max_new)):
        if number < 1:
            raise ValueError(f"{name}: expected a number >= 1, got {number}")
    if not 0 <= min_new <= max_new:
        raise ValueError(f"min_new: expected 0 to max_new = {max_new}, got {min_new}")
    if not 0 <= eos_id < vocabulary.text_size:
        raise ValueError(f"eos_id: expected a text id, 0 to {vocabulary.text_size - 1}, got {eos_id}")
    embedded, _ = embed_prompts(language_model, vocabulary, prompts, max_new, image=False)
    padded, mask, _ = pad(embedded, side="left")
    beams: dict[str, Any] = {"num_beams": num_beams}
    if num_beams > 1:  # transformers warns of a penalty that nothing would use
        beams["length_penalty"] = length_penalty
    settings = GenerationConfig(
        **beams,
        min_new_tokens=min_new,
        max_new_tokens=max_new,
        do_sample=False,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
        use_cache=True,
    )
    watched = TextOnly(vocabulary, eos_id)
    # The model's own generation config, often one for chat with sampling, must not fill in what is not given here.
    own, language_model.generation_config = language_model.generation_config, GenerationConfig()
    unused = language_model.lm_head.register_forward_hook(lambda *called: without_unused(called[2], vocabulary))
    try:
        ids = language_model.generate(  # type: ignore[misc]  # declared for a protocol that no model class fits
            inputs_embeds=padded,
            attention_mask=mask.long(),
            generation_config=settings,
            logits_processor=LogitsProcessorList([watched]),
            **{CACHE: PromptCache(mask.repeat_interleave(num_beams, dim=0))},
        )
    finally:
        language_model.generation_config = own
        unused.remove()
    check_fault(int(torch.stack(watched.faults).amin()), mask.shape[0] * num_beams, num_beams)
    assert isinstance(ids, Tensor)
    return first_of_rows(ids, (ids == eos_id).cumsum(1).eq(0).sum(1))
