"""A residual sum and its RMS norm, as every layer of a LLaMA has them twice."""

from __future__ import annotations

from torch import Tensor

from lavit.kernels.add_rms_norm.library import add_norm
from lavit.kernels.checks import check_float, check_same_device, check_same_dtype, check_shape

__all__ = ["add_rms_norm"]


def add_rms_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """s = x + delta, and s / sqrt(mean(s^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019).

    x: (N, C) floating; delta: as x, or None: 0; weight: (C,), dtype of x; eps: at least 0.
    Returns s and its norm, (N, C) each. Both have a gradient to x, delta and weight, for which s is kept.
    Raises TypeError for a dtype that is not floating or not that of x, and ValueError for shapes or devices that do not
    fit and a negative eps.
    """
    check_float("x", x, "(N, C)")
    for name, other, wanted in (("delta", delta, x.shape), ("weight", weight, x.shape[-1:])):
        if other is not None:
            check_shape(name, other, wanted, "x")
            check_same_dtype(name, other, "x", x)
            check_same_device(name, other, "x", x)
    if not eps >= 0:
        raise ValueError(f"eps: expected a number of at least 0, got {eps}")
    return add_norm(x, delta, weight, float(eps), impl)
