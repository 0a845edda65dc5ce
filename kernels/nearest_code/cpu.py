"""Nearest code by tiles that stay in the cache, with a running maximum: memory O(n + K D), never the n x K matrix.

An element of the scores costs 2 D operations and is read once by the maximum; a tile of 512 x 2048 float32 scores is
4 MB, so that the maximum reads it from the cache and not from memory. PyTorch's maximum is vectorised only where it
does not ask for the index: the maxima of groups of codes come first, then the index within the best group.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lavit.kernels.nearest_code.ranges import search_in_range

ROWS, CODES, GROUP = 512, 2048, 64
# Products of fewer rows take other routines with other roundings; padding up to here keeps a row's score independent
# of how many others are searched with it.
FEWEST_ROWS = 16


def nearest_code(x: Tensor, codebook: Tensor, metric: str, normalize_x: bool, precision: str) -> tuple[Tensor, Tensor]:
    """ids (n,) and score (n,), as in reference.py."""
    return search_in_range(search, x, codebook, metric, normalize_x)


def search(x: Tensor, c: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """ids (n,) and best (n,): arg max_j x.c_j + b_j and the maximum; 0 and -inf where every b is -inf."""
    rows_asked = x.shape[0]
    missing = -c.shape[0] % GROUP
    c = torch.cat([F.pad(c, (0, 0, 0, missing)), F.pad(b, (0, missing), value=-torch.inf)[:, None]], dim=1)
    rows = F.pad(x, (0, 1), value=1.0)  # [x, 1].[c, b] = x.c + b
    if 0 < rows_asked % ROWS < FEWEST_ROWS:
        rows = F.pad(rows, (0, 0, 0, FEWEST_ROWS - rows_asked % ROWS))
    best = x.new_full((rows.shape[0],), -torch.inf)
    ids = torch.zeros(rows.shape[0], dtype=torch.int64)
    space = x.new_empty(min(ROWS, rows.shape[0]) * min(CODES, c.shape[0]))
    for tile, tile_best, tile_ids in zip(rows.split(ROWS), best.split(ROWS), ids.split(ROWS), strict=True):
        for first, codes in zip(range(0, c.shape[0], CODES), c.split(CODES), strict=True):
            scores = space[: len(tile) * len(codes)].view(len(tile), len(codes))
            torch.mm(tile, codes.T, out=scores)
            value, at = first_maximum(scores)
            better = value > tile_best
            tile_best.copy_(torch.where(better, value, tile_best))
            tile_ids.copy_(torch.where(better, at + first, tile_ids))
    return ids[:rows_asked], best[:rows_asked]


def first_maximum(scores: Tensor) -> tuple[Tensor, Tensor]:
    """scores.max(dim=1), with a multiple of GROUP columns: the lowest index of those that hold the maximum."""
    groups = scores.unflatten(1, (scores.shape[1] // GROUP, GROUP))
    group = groups.amax(dim=2).max(dim=1).indices
    value, within = groups[torch.arange(scores.shape[0]), group].max(dim=1)
    return value, group * GROUP + within
