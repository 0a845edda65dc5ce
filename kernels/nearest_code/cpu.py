"""Nearest code by tiles that stay in the cache, with a running maximum: memory O(n + K D), never the n x K matrix.

An element of the scores costs 2 D operations and is read once by the maximum; a tile of 512 x 2048 float32 scores is
4 MB, so that the maximum reads it from the cache and not from memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lavit.kernels.nearest_code.reference import finish, prepare

ROWS, CODES = 512, 2048
# Products of fewer rows take other routines with other roundings; padding up to here keeps a row's score independent
# of how many others are searched with it.
FEWEST_ROWS = 16


def nearest_code(x: Tensor, codebook: Tensor, metric: str, normalize_x: bool, precision: str) -> tuple[Tensor, Tensor]:
    """ids (n,) and score (n,), as in reference.py."""
    usable = x.isfinite().all(dim=1)
    x, c, b = prepare(x, codebook, metric, normalize_x)
    rows_asked, num_codes = x.shape[0], c.shape[0]
    if 0 < rows_asked % ROWS < FEWEST_ROWS:
        x = F.pad(x, (0, 0, 0, FEWEST_ROWS - rows_asked % ROWS))
    n = x.shape[0]
    best = x.new_full((n,), -torch.inf)
    ids = torch.zeros(n, dtype=torch.int64)
    tile = x.new_empty(min(ROWS, n), min(CODES, num_codes))
    biased = metric != "cosine" or bool(b.isinf().any())
    for i in range(0, n, ROWS):
        rows = slice(i, min(i + ROWS, n))
        for j in range(0, num_codes, CODES):
            codes = slice(j, min(j + CODES, num_codes))
            scores = tile.flatten()[: (rows.stop - i) * (codes.stop - j)].view(rows.stop - i, codes.stop - j)
            torch.mm(x[rows], c[codes].T, out=scores)
            if biased:
                scores += b[codes]
            value, at = scores.max(dim=1)
            better = value > best[rows]
            best[rows] = torch.where(better, value, best[rows])
            ids[rows] = torch.where(better, at + j, ids[rows])
    return finish(x[:rows_asked], best[:rows_asked], ids[:rows_asked], usable, metric)
