"""Drawing vectors for the tests of nearest_code, and what may be called the nearest code."""

from __future__ import annotations

import torch


def vectors(n, dim, seed=0, dtype=torch.float32):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(x):
    """x / |x| in float64, of rows of any length; zero rows stay zero. NaN and Inf make NaN."""
    x = x.double()
    largest = x.abs().amax(dim=1, keepdim=True)
    x = x / torch.where(largest == 0, 1.0, largest)
    return x / torch.where(largest == 0, 1.0, x.norm(dim=1, keepdim=True))


def compared(x, codebook, metric, normalize_x):
    """x' and c' in float64."""
    x = unit(x) if metric == "cosine" or normalize_x else x.double()
    return x, unit(codebook) if metric == "cosine" else codebook.double()


def distances(x, codebook, metric, normalize_x):
    """|x - c|^2 as the paper writes it, in float64: (n, K)."""
    x, c = compared(x, codebook, metric, normalize_x)
    return (x[:, None] - c[None]).square().sum(dim=-1)


def assert_right_at_any_magnitude(ids, x, codebook, metric, normalize_x):
    """The chosen code's score x'.c' - |c'|^2/2 is float64's best, within float32's rounding of the two codes' own terms
    (float64's for float64): however large another code is, and with no |x|^2 to round away what tells codes apart."""
    xs, cs = compared(x, codebook, metric, normalize_x)
    square = cs.square().sum(dim=1)
    scores = xs @ cs.T - (0 if metric == "cosine" else square / 2)
    best = scores.argmax(dim=1)
    terms = xs.norm(dim=1) * square.sqrt()[torch.stack([ids, best])] + square[torch.stack([ids, best])] / 2
    eps = torch.finfo(x.dtype if x.dtype == torch.float64 else torch.float32).eps
    rows = torch.arange(len(x))
    gap = scores[rows, best] - scores[rows, ids]
    assert bool((gap <= 2 * (x.shape[1] + 3) * eps * terms.sum(dim=0)).all())


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
