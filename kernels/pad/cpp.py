"""The compiled form (csrc/cpu/pad.cpp, csrc/cuda/pad.cu): rows, mask and positions are written in one pass."""

from __future__ import annotations

import torch
from torch import Tensor


def pad(values: Tensor, cu: Tensor, length: int, left: bool, value: float) -> tuple[Tensor, Tensor, Tensor]:
    # One element on the host tells the kernel the bytes of ``value``; no device is waited for.
    element = torch.full((1,), value, dtype=values.dtype)
    return torch.ops.lavit_cpp.pad(values.contiguous(), cu.contiguous(), length, left, element)


def unpad(padded: Tensor, cu: Tensor, left: bool, total: int) -> Tensor:
    return torch.ops.lavit_cpp.unpad(padded.contiguous(), cu.contiguous(), left, total)
