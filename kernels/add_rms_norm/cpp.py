"""The compiled form (csrc/cpu/add_rms_norm.cpp): one call in the place of seven."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.extension import cpu_operator_unusable

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def unusable(device_type: str) -> str | None:
    return cpu_operator_unusable("add_rms_norm", device_type)


def can_take(x: Tensor) -> bool:
    return x.dtype in DTYPES


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.ops.lavit_cpp.add_rms_norm(x, delta, weight, eps)
