"""The definition, in plain PyTorch. Rank r of sequence b is at column r, or L - min(n_b, L) + r with left padding."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.pack.reference import masked, owners


def pad(values: Tensor, cu: Tensor, length: int, left: bool, value: float) -> tuple[Tensor, Tensor, Tensor]:
    n = cu.diff().clamp(max=length)[:, None]
    start = length - n if left else torch.zeros_like(n)
    rank = torch.arange(length, device=cu.device) - start
    row = cu[:-1, None] + rank
    mask = (rank >= 0) & (rank < n)
    if values.shape[0] == 0:
        padded = torch.full((*mask.shape, *values.shape[1:]), value, dtype=values.dtype, device=values.device)
    else:
        padded = masked(mask & (row < values.shape[0]), values[row.clamp(0, values.shape[0] - 1)], value)
    return padded, mask, torch.where(mask, rank, 0).to(torch.int64)


def unpad(padded: Tensor, cu: Tensor, left: bool, total: int) -> Tensor:
    batch, length = padded.shape[:2]
    if total == 0 or batch == 0 or length == 0:
        return padded.new_zeros((total, *padded.shape[2:]))
    image, rank, valid = owners(cu, total)
    column = rank + length - cu.diff().clamp(max=length)[image] if left else rank
    return masked(valid & (rank < length), padded[image, column.clamp(0, length - 1)], 0.0)
