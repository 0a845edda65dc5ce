"""The compiled form (csrc/cpu/add_rms_norm.cpp): one call in the place of seven, and one for the gradient."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from lavit.kernels.extension import cpu_operator_unusable

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
VECTOR_BYTES = 0  # of the vectors to compute with: 16, 32 or 64; 0 for the widest that the machine has


def unusable(device_type: str) -> str | None:
    return cpu_operator_unusable("add_rms_norm_backward", device_type)


def can_take(x: Tensor) -> bool:
    return x.dtype in DTYPES


@cache
def _operator() -> Any:
    """Looked up once: one token's rows are done in a few microseconds, of which that would be a tenth."""
    return torch.ops.lavit_cpp.add_rms_norm.default


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Of contiguous tensors."""
    return _operator()(x, delta, weight, eps, VECTOR_BYTES)


def add_rms_norm_backward(
    total: Tensor, grad_total: Tensor | None, grad_normed: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    grad_total = None if grad_total is None else grad_total.contiguous()
    others = grad_normed.contiguous(), total.contiguous(), weight.contiguous()
    return torch.ops.lavit_cpp.add_rms_norm_backward.default(grad_total, *others, eps, VECTOR_BYTES)
