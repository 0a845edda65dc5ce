"""The definition, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def offsets(lengths: Tensor) -> Tensor:
    """(B,) lengths -> (B + 1,) int32 offsets: 0, then the running sum."""
    return torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


def partition(keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kept = keep != 0
    order = torch.argsort((~kept).to(torch.uint8), dim=1, stable=True).to(torch.int32)
    return order, offsets(kept.sum(1)), offsets((~kept).sum(1))
