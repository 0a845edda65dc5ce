"""Drawing vectors for the tests of nearest_code, and what may be called the nearest code."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def vectors(n, dim, seed=0, dtype=torch.float32):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def distances(x, codebook, metric, normalize_x):
    """|x - c|^2 as the paper writes it, in float64: (n, K)."""
    x, c = x.double(), codebook.double()
    x = F.normalize(x, dim=1) if metric == "cosine" or normalize_x else x
    c = F.normalize(c, dim=1) if metric == "cosine" else c
    return (x[:, None] - c[None]).square().sum(dim=-1)


def assert_nearest(ids, x, codebook, metric, normalize_x):
    """The chosen code is the float64 one, or as near as float32 rounding of the products can tell.

    A score x.c - |c|^2/2 carries an error of at most (D + 3) eps (|x||c| + |c|^2/2), the distance twice that, and two
    codes are compared.
    """
    d = distances(x, codebook, metric, normalize_x)
    gap = d.gather(1, ids[:, None]).squeeze(1) - d.min(dim=1).values
    xn = torch.ones(len(x)) if metric == "cosine" or normalize_x else x.double().norm(dim=1)
    cn = torch.tensor(1.0) if metric == "cosine" else codebook.double().norm(dim=1).max()
    eps = torch.finfo(x.dtype if x.dtype == torch.float64 else torch.float32).eps
    assert bool((gap <= 4 * (x.shape[1] + 3) * eps * (xn * cn + cn**2 / 2)).all())
