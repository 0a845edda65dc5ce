"""The definition, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_id(scores: Tensor, uniform: Tensor, top_k: int, top_p: float, temperature: float) -> Tensor:
    best = scores.amax(-1, keepdim=True)
    ids = _of_finite(scores, best, uniform[:, None], top_k, top_p, temperature)
    finite = best.abs() < torch.inf  # not of NaN
    return ids.masked_fill_(~finite, -1)[:, 0]


def _of_finite(
    scores: Tensor, best: Tensor, uniform: Tensor, top_k: int, top_p: float, temperature: float
) -> Tensor:
    """(R, 1) ids; best: (R, 1), the greatest of each row; uniform: (R, 1)."""
    if temperature == 0:
        return scores.argmax(-1, keepdim=True)
    weight, ids = candidates(scores, best, top_k, top_p, temperature)
    reached = weight.cumsum(-1)
    place = torch.searchsorted(reached, uniform * reached[:, -1:], right=True).clamp_(max=weight.shape[-1] - 1)
    return place if ids is None else ids.gather(-1, place)


def candidates(
    scores: Tensor, best: Tensor, top_k: int, top_p: float, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """What may be drawn at a temperature above 0: weights (R, k) float64, 0 outside the nucleus, and the ids (R, k) in
    rising order; None where these are all of them. best: (R, 1), the greatest of scores (R, A)."""
    allowed = scores.shape[-1]
    ids: Tensor | None = None
    if top_k < allowed or top_p < 1:
        scores, ids = scores.topk(min(top_k, allowed))  # the likeliest first
    weight = ((scores - best).double() / temperature).exp_()
    if top_p < 1:
        before = weight.cumsum(-1) - weight
        weight = weight * (before < top_p * weight.sum(-1, keepdim=True))
    if ids is not None:
        ids, order = ids.sort(-1)
        weight = weight.gather(-1, order)
    return weight, ids
