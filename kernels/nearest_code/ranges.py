"""What the forms for the CPU share: float32 where its range is enough, float64 where it is not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lavit.kernels.nearest_code.reference import finish, finite_rows, prepare
from lavit.kernels.types import compute_dtype

# Of two vectors with their largest entries within these, products and squares are far from float32's ends, even those
# of entries that are 2^-24 of the largest.
SMALLEST, LARGEST = 2.0**-38, 2.0**50

# x' (n, D), c' (K, D) and b (K,) of prepare, contiguous, to ids (n,) and best (n,).
Search = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def search_in_range(
    search: Search, x: Tensor, codebook: Tensor, metric: str, normalize_x: bool
) -> tuple[Tensor, Tensor]:
    """ids (n,) and score (n,), as in reference.py. Directions always fit float32. Of vectors as they are, a codebook
    that does not is searched in float64, and so are single rows: the others do not depend on them."""
    x = x.to(compute_dtype(x))
    codebook = codebook.to(x.dtype)
    if x.dtype == torch.float64 or metric == "cosine":
        return _search(search, x, codebook, metric, normalize_x)
    if not bool(_fits(codebook).all()):
        return _search(search, x.double(), codebook.double(), metric, normalize_x)
    ids, score = _search(search, x, codebook, metric, normalize_x)
    if not normalize_x and not bool((fits := _fits(x)).all()):
        found = _search(search, x[~fits].double(), codebook.double(), metric, normalize_x)
        ids[~fits], score[~fits] = found
    return ids, score


def _fits(x: Tensor) -> Tensor:
    """Which rows have their largest entry in float32's comfortable range; zeros, and those that are not finite, do."""
    if x.shape[1] == 0:
        return x.new_ones(len(x), dtype=torch.bool)
    largest = x.abs().amax(dim=1)
    return ~((largest > LARGEST) & (largest < torch.inf)) & ~((largest > 0) & (largest < SMALLEST))


def _search(search: Search, x: Tensor, codebook: Tensor, metric: str, normalize_x: bool) -> tuple[Tensor, Tensor]:
    usable = finite_rows(x)
    x, c, b = prepare(x, codebook, metric, normalize_x)
    ids, best = search(x.contiguous(), c.contiguous(), b.contiguous())
    return finish(x, best, ids, usable, metric)
