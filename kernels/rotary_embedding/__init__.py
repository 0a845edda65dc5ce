"""Queries or keys of packed rows, rotated by the rows' positions."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.checks import check_float, check_same_device, check_same_dtype, check_shape
from lavit.kernels.rotary_embedding.library import rotated

__all__ = ["rotary_embedding"]


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, *, impl: str = "auto") -> Tensor:
    """x cos + (-b, a) sin, where a and b are the halves of a head of x (Su et al. 2021; halves as LLaMA has them).

    x: (T, H, D) floating, D even. cos, sin: (T, D), dtype of x, of each row's position; constants, without gradient.
    Returns (T, H, D), with a gradient to x.
    Raises TypeError for a dtype that is not floating or not that of x, and ValueError for shapes or devices that do not
    fit, an odd D, and cos or sin that want a gradient.
    """
    check_float("x", x, "(T, H, D)")
    if x.shape[2] % 2:
        raise ValueError(f"x: expected heads of an even number of dimensions, got {tuple(x.shape)}")
    for name, other in (("cos", cos), ("sin", sin)):
        check_shape(name, other, (x.shape[0], x.shape[2]), "x")
        check_same_dtype(name, other, "x", x)
        check_same_device(name, other, "x", x)
        if other.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: expected a tensor that wants no gradient, got one that does")
    return rotated(x, cos, sin, impl)
