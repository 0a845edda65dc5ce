"""Nearest code, in plain PyTorch: the whole n x K matrix of scores and its arg max."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lavit.kernels.types import compute_dtype


def prepare(x: Tensor, codebook: Tensor, metric: str, normalize_x: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x', c' and b such that the nearest code is arg max_j x'.c'_j + b_j, in float32 (float64 for float64).

    cosine: x' = x/|x|, c' = c/|c|, b = 0. euclidean: x' = x or x/|x|, c' = c, b = -|c|^2/2, since
    |x - c|^2 = |x|^2 - 2 (x.c - |c|^2/2) and |x|^2 is the same for every code; leaving it out keeps its rounding out.
    A code with NaN or Inf gets c' = 0, b = -inf: it is never the nearest.
    """
    dtype = compute_dtype(x)
    x, c = x.to(dtype), codebook.to(dtype)
    if metric == "cosine" or normalize_x:
        x = F.normalize(x, dim=1)
    finite = c.isfinite().all(dim=1, keepdim=True)
    c = torch.where(finite, c, 0.0)
    if metric == "cosine":
        c, b = F.normalize(c, dim=1), torch.zeros_like(c[:, 0])
    else:
        b = -0.5 * c.square().sum(dim=1)
    return x, c, torch.where(finite[:, 0], b, -torch.inf)


def finish(x: Tensor, best: Tensor, ids: Tensor, usable: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """ids (n,) int64 with -1, and score (n,) float32 with NaN, where the row has NaN or Inf or no code is usable."""
    score = best if metric == "cosine" else (x.square().sum(dim=1) - 2 * best).clamp(min=0)
    usable = usable & (best > -torch.inf)
    return torch.where(usable, ids, -1), torch.where(usable, score, torch.nan).float()


def nearest_code(x: Tensor, codebook: Tensor, metric: str, normalize_x: bool, precision: str) -> tuple[Tensor, Tensor]:
    """ids (n,) and score (n,): cosine similarity, or squared euclidean distance. Ties go to the lowest id."""
    usable = x.isfinite().all(dim=1)
    x, c, b = prepare(x, codebook, metric, normalize_x)
    best, ids = (x @ c.T + b).max(dim=1)
    return finish(x, best, ids, usable, metric)
