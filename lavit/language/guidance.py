"""How the next image token is chosen: guidance, the ids that are allowed, top-k, top-p and the draw.

The release's rule, with c and u the model's logits after the prompt and after ``[IMG]`` alone, over the whole
vocabulary:

    m = log_softmax(u) + g (log_softmax(c) - log_softmax(u))        mixed before ids are suppressed
    p = softmax of m / T over the allowed ids, cut to the top k and to the top-p nucleus

A log-softmax is the logits less one number for the whole row, so m over the allowed ids is ``u + g (c - u)`` there less
one number. Softmax, arg max, top-k and top-p do not see it: the head is needed for the allowed rows alone, which for
image tokens are ``[/IMG]`` and the codes, one run of the head's rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lavit.kernels.checks import check_int64, check_rank
from lavit.kernels.draw_id.library import OPERATION as DRAW_ID
from lavit.kernels.gumbel_select.reference import MASK, philox4x32
from lavit.language.vocabulary import Vocabulary

MULTIMODAL_GUIDANCE = 5.0  # the release's, for prompts that hold images


@dataclass(frozen=True)
class SamplingSettings:
    """How image tokens are drawn; the defaults are the release's for text prompts.

    guidance: g >= 0; 1 is the model alone (one stream only), 0 ignores the prompt. The release: 4, and
        ``MULTIMODAL_GUIDANCE`` for prompts that hold images; the paper's evaluation: 2.
    top_k: number of likeliest ids to draw from; None is all. Of ids that tie for the last place one stays.
    top_p: share of the probability that the likeliest ids must reach, in (0, 1]; the one that reaches it is kept.
    temperature: T >= 0; 0 takes the likeliest id.
    min_tokens: [/IMG] is not allowed before so many codes. max_tokens: no more codes than these.
    num_samples: samples a prompt.
    check_every: tokens between two looks at whether all samples have ended, each a wait for the device. The result does
        not depend on it.
    record: on a GPU the work of a token is recorded once, in a CUDA graph, and replayed.

    Raises ValueError naming the setting that is out of range.
    """

    guidance: float = 4.0
    top_k: int | None = 50
    top_p: float = 1.0
    temperature: float = 1.0
    min_tokens: int = 20
    max_tokens: int = 200
    num_samples: int = 1
    check_every: int = 16
    record: bool = True

    def __post_init__(self) -> None:
        for name in ("guidance", "temperature"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected a number >= 1, or None for all ids, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number in (0, 1], got {self.top_p}")
        for name in ("max_tokens", "num_samples", "check_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number >= 1, got {getattr(self, name)}")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(f"min_tokens: expected 0 to max_tokens = {self.max_tokens}, got {self.min_tokens}")

    @property
    def guided(self) -> bool:
        """Whether there is a second stream."""
        return self.guidance != 1


def guided_log_probs(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """The release's rule: logits (..., V) of both streams over the whole vocabulary -> mixed log-probabilities."""
    c, u = conditional.log_softmax(-1), unconditional.log_softmax(-1)
    return u + guidance * (c - u)


def guided_scores(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """The same over some ids only, less one number a row: logits (..., A) of both streams -> (..., A)."""
    return torch.add(unconditional, conditional - unconditional, alpha=guidance)


def image_head(head: nn.Linear, vocabulary: Vocabulary) -> tuple[Tensor, Tensor | None]:
    """The head's rows for [/IMG] and the codes, in this order: weight (1 + K, H) and bias, views of the head's own.

    Raises ValueError when the head has fewer rows than the vocabulary has ids.
    """
    if head.weight.shape[0] < vocabulary.size:
        raise ValueError(
            f"vocabulary: expected at most {head.weight.shape[0]} ids, the rows of the model's head, got "
            f"{vocabulary.size}"
        )
    rows = slice(vocabulary.end_id, vocabulary.size)
    return head.weight[rows], None if head.bias is None else head.bias[rows]


def uniforms(seeds: Tensor, count: int) -> Tensor:
    """The random numbers of each sample: (R,) int64 seeds -> (R, count) float64 in [0, 1), multiples of 2^-53.

    Philox4x32-10 with key = the seed's two words and counter = (token, 1, 0, 0): a number depends on the seed and the
    token's place alone, and is none of those that ``gumbel_select`` draws from the same seed (its second word is 0).
    """
    check_int64("seeds", seeds)
    check_rank("seeds", seeds, "(R)")
    token = torch.arange(count, device=seeds.device, dtype=torch.int64)
    key = ((seeds & MASK)[:, None], ((seeds >> 32) & MASK)[:, None])
    zero = torch.zeros_like(token)
    high, low, _, _ = philox4x32(key, (token, zero + 1, zero, zero))
    return ((high >> 5) * 2**26 + (low >> 6)).double() * 2.0**-53


def draw(scores: Tensor, uniform: Tensor, settings: SamplingSettings) -> Tensor:
    """One id a row, as :func:`lavit.kernels.draw_id` tells: scores (R, A), float32 or float64, random numbers (R,) in
    [0, 1) -> (R,) int64 in 0..A-1, -1 for a row without a finite best."""
    top_k = min(settings.top_k or scores.shape[1], scores.shape[1])
    # Past the checks of every call's arguments, which were the settings' own.
    of = DRAW_ID.module("auto", scores).draw_id
    return of(scores, uniform, top_k, settings.top_p, settings.temperature)
