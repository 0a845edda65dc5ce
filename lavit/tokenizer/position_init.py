"""Where learned positions may start: waves over the plane of patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.initialization import copy_

POSITION_STD = 0.5
"""Deviation of new positions where the configuration leaves it open; that of a standardised feature is 1."""


def init_positions(embedding: Tensor, config: PretrainedConfig) -> None:
    """Starts positions in place: normal with the configuration's deviation, or as waves.

    embedding: (1, N, C), or (1, 1 + N, C) with the class token's place in front.
    """
    if config.initializer_range is not None:
        nn.init.trunc_normal_(embedding, std=config.initializer_range)
        return
    start = torch.zeros_like(embedding)
    side = config.image_size // config.patch_size
    start[:, -side * side :] = POSITION_STD * plane_waves(side, embedding.shape[-1]).to(start)
    copy_(embedding, start)


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
