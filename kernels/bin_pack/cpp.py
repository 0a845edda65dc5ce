"""The compiled form (csrc/cpu/bin_pack.cpp): a bitset over the rooms left in the open bins, about linear in n."""

from __future__ import annotations

import torch
from torch import Tensor


def bin_pack(lengths: Tensor, budget: int, window: int, in_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.lavit_cpp.bin_pack(lengths.contiguous(), budget, window, in_order)
