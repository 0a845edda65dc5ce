"""The compiled form (csrc/cpu/pack.cpp, csrc/cuda/pack.cu): rows are moved as bytes, so every dtype is one case."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(x: Tensor, order: Tensor, cu: Tensor, total: int, dropped: bool) -> Tensor:
    return torch.ops.lavit_cpp.pack(x.contiguous(), order.contiguous(), cu.contiguous(), total, dropped)


def unpack(values: Tensor, order: Tensor, cu: Tensor, fill: float, dropped: bool) -> Tensor:
    # One element on the host tells the kernel the bytes of ``fill``; no device is waited for.
    element = torch.full((1,), fill, dtype=values.dtype)
    return torch.ops.lavit_cpp.unpack(values.contiguous(), order.contiguous(), cu.contiguous(), element, dropped)
