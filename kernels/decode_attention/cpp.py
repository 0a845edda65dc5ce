"""The compiled form (csrc/cpu/decode_attention.cpp): rotation, write and attention in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.extension import cpu_operator_unusable

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def unusable(device_type: str) -> str | None:
    return cpu_operator_unusable("decode_attention", device_type)


def can_take(x: Tensor) -> bool:
    return x.dtype in DTYPES


def decode_attention(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    cos: Tensor,
    sin: Tensor,
    slot: Tensor,
    window: int,
    scale: float,
) -> Tensor:
    return torch.ops.lavit_cpp.decode_attention(qkv, keys, values, mask, cos, sin, slot, window, scale)
