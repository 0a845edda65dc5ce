"""The definition, in plain PyTorch. Row t of the packed batch is rank r of image b: t = cu[b] + r."""

from __future__ import annotations

import torch
from torch import Tensor


def owners(cu: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each of ``total`` packed rows: its image b, its rank r within the image, and whether it is in use.

    Rows before cu[0] and from cu[-1] on are not in use; the latter get image B - 1 and an arbitrary rank.
    """
    row = torch.arange(total, device=cu.device)
    image = torch.searchsorted(cu[1:].contiguous(), row, right=True).clamp(max=cu.shape[0] - 2)
    rank = row - cu[image]
    return image, rank, (rank >= 0) & (row < cu[-1])


def masked(valid: Tensor, rows: Tensor, fill: float) -> Tensor:
    """``rows`` where valid, ``fill`` elsewhere; valid covers the leading dimensions of rows."""
    valid = valid.reshape(valid.shape + (1,) * (rows.dim() - valid.dim()))
    return torch.where(valid, rows, torch.full((), fill, dtype=rows.dtype, device=rows.device))


def pack(x: Tensor, order: Tensor, cu: Tensor, total: int, dropped: bool) -> Tensor:
    batch, patches = order.shape
    if total == 0 or batch == 0 or patches == 0:
        return x.new_zeros((total, *x.shape[2:]))
    image, rank, valid = owners(cu, total)
    if dropped:
        rank = rank + patches - cu.diff()[image]
    patch = order[image, rank.clamp(0, patches - 1)]
    return masked(valid, x[image, patch], 0.0)


def unpack(values: Tensor, order: Tensor, cu: Tensor, fill: float, dropped: bool) -> Tensor:
    batch, patches = order.shape
    if values.shape[0] == 0:
        return torch.full((batch, patches, *values.shape[1:]), fill, dtype=values.dtype, device=values.device)
    length = cu.diff()[:, None]
    rank = order.argsort(dim=1) - (patches - length if dropped else 0)  # of each patch: where the order has it
    row = cu[:-1, None] + rank
    valid = (rank >= 0) & (rank < length) & (row < values.shape[0])
    return masked(valid, values[row.clamp(0, values.shape[0] - 1)], fill)
