"""The choice of a token from its scores: top-k, top-p, temperature, and one random number a row."""

from __future__ import annotations

from torch import Tensor

from lavit.kernels.checks import check_float, check_rank, check_shape
from lavit.kernels.dispatch import direct
from lavit.kernels.draw_id.library import compute, draw_id_op

__all__ = ["draw_id"]


def draw_id(
    scores: Tensor,
    uniform: Tensor,
    *,
    top_k: int | None = None,
    top_p: float = 1.0,
    temperature: float = 1.0,
    impl: str = "auto",
) -> Tensor:
    """One id a row, by the inverse of the distribution function over the candidates in the order of their ids.

    scores: (R, A) float32 or float64, A >= 1; -inf is never drawn. uniform: (R,) float64 in [0, 1).
    top_k: the number of likeliest ids to draw from, None: all; of ids that tie for the last place one stays.
    top_p: the share of the probability that the likeliest ids must reach; the one that reaches it is kept.
    temperature: at least 0; 0 takes the likeliest id.
    Returns (R,) int64, a row's id by its own scores and number only; -1 for a row without a finite best score, or with
    NaN. Two candidates whose scores change places do not change the draw. No gradient.
    Raises TypeError for other dtypes, ValueError for shapes that do not fit and numbers out of range.
    """
    check_float("scores", scores)
    check_rank("scores", scores, "(R, A)")
    check_shape("uniform", uniform, scores.shape[:1], "scores")
    for name, x, dtypes in (("scores", scores, "float32 or float64"), ("uniform", uniform, "float64")):
        if str(x.dtype).removeprefix("torch.") not in dtypes.split(" or "):
            raise TypeError(f"{name}: expected {dtypes}, got {x.dtype}")
    if scores.shape[1] < 1:
        raise ValueError("scores: expected at least one id, got none")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected a number >= 1, or None for all ids, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a number in (0, 1], got {top_p}")
    if not temperature >= 0:
        raise ValueError(f"temperature: expected a number of at least 0, got {temperature}")
    count = min(top_k or scores.shape[1], scores.shape[1])
    return (compute if direct(scores, uniform) else draw_id_op)(scores, uniform, count, top_p, temperature, impl)
