"""Where learned positions may start: waves over the plane of patches."""

from __future__ import annotations

import torch
from torch import Tensor


def plane_waves(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column at wavelengths from four patches to four times the side.

    Returns (side * side, width) in raster order, each channel centred, all with deviation 1. Neighbours are alike and
    places add up from a row and a column, which random vectors would have to learn. Raises ``ValueError`` for a width
    that is no multiple of 4.
    """
    if side < 1 or width < 4 or width % 4:
        raise ValueError(f"side and width: expected at least 1 and a multiple of 4, got {side} and {width}")
    frequency = 1.5 * float(side) ** -(torch.arange(width // 4) / (width // 4))
    angle = torch.arange(side, dtype=torch.float32)[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], dim=1)
    line = line - line.mean(0)
    rows = line[:, None].expand(side, side, -1)
    columns = line[None].expand(side, side, -1)
    waves = torch.cat([rows, columns], dim=-1).reshape(side * side, width)
    return waves / waves.square().mean().sqrt().clamp(min=1e-6)
