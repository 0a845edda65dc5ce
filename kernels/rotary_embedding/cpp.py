"""The compiled form (csrc/cpu/rotary_embedding.cpp): one pass over x, whose rows may lie apart."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.extension import cpu_operator_unusable

DTYPES = (torch.float32, torch.float64)
VECTOR_BYTES = 0  # of the vectors to compute with: 16, 32 or 64; 0 for the widest that the machine has


def unusable(device_type: str) -> str | None:
    return cpu_operator_unusable("rotary_embedding", device_type)


def can_take(x: Tensor) -> bool:
    return x.dtype in DTYPES


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    rows = x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
    angles = cos.contiguous(), sin.contiguous()
    return torch.ops.lavit_cpp.rotary_embedding.default(rows, *angles, back, VECTOR_BYTES)
