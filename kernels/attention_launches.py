"""What the Triton launchers of both attentions share: tiles for devices with less room, and no needless compilation."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from torch import Tensor

from lavit.kernels.triton_support import Tile

SMALLEST = 16  # rows and columns of a tensor-core product
ALIGNMENT = 16  # bytes; a pointer that is no multiple of it is a compilation of its own


@cache
def smaller(tile: Tile) -> list[Tile]:
    """The tile, then those to try where a device has no room for it: loads run ahead by a step less, then the longer
    side is halved, and so on."""
    found = [tile]
    while True:
        tile = found[-1]
        if tile.num_stages > 1:
            found.append(replace(tile, num_stages=tile.num_stages - 1))
        elif max(tile.block_m, tile.block_n) == SMALLEST:
            return found
        elif tile.block_m >= tile.block_n:
            found.append(replace(tile, block_m=tile.block_m // 2))
        else:
            found.append(replace(tile, block_n=tile.block_n // 2))


def aligned(x: Tensor) -> bool:
    """Whether x begins where a compilation for any new tensor takes it."""
    return x.data_ptr() % ALIGNMENT == 0


def packed(x: Tensor) -> Tensor:
    """x itself if it is contiguous and aligned, else a copy that is."""
    x = x.contiguous()
    return x if aligned(x) else x.clone()
