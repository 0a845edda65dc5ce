"""A residual sum and its RMS norm, as every layer of a LLaMA has them twice."""

from __future__ import annotations

from torch import Tensor

from lavit.kernels.add_rms_norm.library import add_rms_norm_op, compute
from lavit.kernels.checks import check_float, check_rank, check_shape
from lavit.kernels.dispatch import direct

__all__ = ["add_rms_norm"]


def add_rms_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """s = x + delta, and s / sqrt(mean(s^2) + eps) * weight over the last dimension.

    x: (N, C) floating; delta: as x, or None: 0; weight: (C,); eps: at least 0.
    Returns s and its norm, (N, C) each. No gradient.
    Raises TypeError for a dtype that is not floating, and ValueError for shapes that do not fit and a negative eps.
    """
    check_float("x", x)
    check_rank("x", x, "(N, C)")
    if delta is not None:
        check_shape("delta", delta, tuple(x.shape), "x")
    check_shape("weight", weight, x.shape[-1:], "x")
    if not eps >= 0:
        raise ValueError(f"eps: expected a number of at least 0, got {eps}")
    return (compute if direct(x, delta, weight) else add_rms_norm_op)(x, delta, weight, eps, impl)
