"""Nearest code, in plain PyTorch: the whole n x K matrix of scores and its arg max, in float64.

For finite rows and codes of every magnitude, with l2(v) = v / |v| however short or long v is, and l2(0) = 0:
    cosine: arg max_j l2(x).l2(c_j). All codes are equally near to a zero row: it gets the lowest id of a finite code.
    euclidean: arg min_j |x' - c_j|, x' = l2(x) with ``normalize_x``, else x. A zero row gets the shortest code.
Ties go to the lowest id. A row with NaN or Inf gets -1, and a code with NaN or Inf is never the nearest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.types import compute_dtype


def l2(x: Tensor) -> Tensor:
    """Rows of length 1, whatever their length was; zero rows stay zero. A power of two brings them near 1 first, which
    rounds nothing: no square over- or underflows."""
    if x.shape[1] == 0:
        return x
    most = 126 if x.dtype == torch.float32 else 1022
    largest = x.abs().amax(dim=1, keepdim=True)
    exponent = torch.frexp(largest).exponent.clamp(-most, most)
    x = x * torch.ldexp(torch.ones_like(largest), -exponent)
    return x / torch.where(largest == 0, 1.0, torch.linalg.vector_norm(x, dim=1, keepdim=True))


def finite_rows(x: Tensor) -> Tensor:
    """Which rows hold neither NaN nor Inf: (n,) bool. Their largest entry knows, in a third of `isfinite`'s passes."""
    return x.abs().amax(dim=1).isfinite() if x.shape[1] else x.new_ones(len(x), dtype=torch.bool)


def prepare(x: Tensor, codebook: Tensor, metric: str, normalize_x: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x', c' and b, in the dtype of x and the codebook, such that the nearest code is arg max_j x'.c'_j + b_j.

    cosine: x' = l2(x), c' = l2(c), b = 0. euclidean: x' = x or l2(x), c' = c, b = -|c|^2/2, since
    |x - c|^2 = |x|^2 - 2 (x.c - |c|^2/2) and |x|^2 is the same for every code; leaving it out keeps its rounding out.
    A code with NaN or Inf gets c' = 0, b = -inf: it is never the nearest.
    """
    if metric == "cosine" or normalize_x:
        x = l2(x)
    finite = finite_rows(codebook)
    c = torch.where(finite[:, None], codebook, 0.0)
    if metric == "cosine":
        c, b = l2(c), torch.zeros_like(c[:, 0])
    else:
        b = -0.5 * c.square().sum(dim=1)
    return x, c, torch.where(finite, b, -torch.inf)


def finish(x: Tensor, best: Tensor, ids: Tensor, usable: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """ids (n,) int64 with -1, and score (n,) float32 with NaN, where the row has NaN or Inf or no code is usable."""
    score = best if metric == "cosine" else (x.square().sum(dim=1) - 2 * best).clamp(min=0)
    usable = usable & (best > -torch.inf)
    return torch.where(usable, ids, -1), torch.where(usable, score, torch.nan).float()


def nearest_code(x: Tensor, codebook: Tensor, metric: str, normalize_x: bool, precision: str) -> tuple[Tensor, Tensor]:
    """ids (n,) and score (n,): cosine similarity, or squared euclidean distance. Ties go to the lowest id."""
    usable = finite_rows(x)
    # Codes of another precision than x are compared as x is: as in the other implementations.
    codebook = codebook.to(compute_dtype(x))
    x, c, b = prepare(x.double(), codebook.double(), metric, normalize_x)
    best, ids = (x @ c.T + b).max(dim=1)
    return finish(x, best, ids, usable, metric)
