"""Random inputs for the tests of policy_attention, and what rounding may do to its results."""

from __future__ import annotations

import torch

from lavit.kernels import policy_attention
from lavit.kernels.policy_attention import reference


def mask(name, batch, n):
    keep = torch.zeros(batch, n)
    if name == "one":
        keep[:, n // 2] = 1
    elif name == "all":
        keep += 1
    elif name == "third":
        keep[:, 1::3] = 1
    elif name == "between":
        keep = torch.rand(batch, n, generator=torch.Generator().manual_seed(1))
    return keep


def case(n, dim, keep, std=2.0, batch=2, heads=1, dtype=torch.float32):
    """q, k, v, g with logits of about that standard deviation, and keep."""
    generator = torch.Generator().manual_seed(n + dim)
    q, k, v, g = (torch.randn(batch, n, heads, dim, generator=generator) for _ in range(4))
    return *(x.to(dtype) for x in (std * q, k, v, g)), mask(keep, batch, n)


def run(q, k, v, g, keep, kind, eps, impl="triton"):
    """out, dq, dk, dv, dkeep."""
    inputs = [x.detach().requires_grad_() for x in (q, k, v, keep)]
    out = policy_attention(*inputs, kind=kind, eps=eps, impl=impl)
    return out.detach(), *torch.autograd.grad(out, inputs, g)


def in_float64(q, k, v, g, keep, kind, eps):
    return run(*(x.double().cpu() for x in (q, k, v, g, keep)), kind, eps, impl="reference")


def allowed(q, k, v, g, keep, kind, eps):
    """Of every element of out, dq, dk, dv and dkeep, the bound of its error in float32.

    A sum of m products carries at most m u of the sum of their magnitudes; an exponential, the absolute error of its
    argument. So everything carries a few times that of a logit and (N + D) u, relative to the sums of magnitudes.
    """
    q, k, v, g, keep = (x.double().cpu() for x in (q, k, v, g, keep))
    batch, n, heads, dim = q.shape
    scale, u = dim**-0.5, 2**-24
    qh, kh, vh, gh = (x.transpose(1, 2) for x in (q, k, v, g))
    a, weight, p, den, argmax, _ = reference.weights(qh, kh, keep, kind, eps, scale)
    qh, kh, vh, gh = (x.abs() for x in (qh, kh, vh, gh))
    logit = float((qh @ kh.transpose(-1, -2)).max()) * scale * (dim + 4) * u
    relative = 6 * logit + 4 * (n + dim + 8) * u
    out = a @ vh
    da = gh @ vh.transpose(-1, -2) + (gh * out).sum(-1, keepdim=True)
    ds = weight * p * da
    to_maximum = eps / den * ((gh * out).sum(-1, keepdim=True) + gh @ vh.mean(dim=2, keepdim=True).transpose(-1, -2))
    ds = ds.scatter_add(-1, argmax, to_maximum) * scale
    dkeep = (weight * da).tril(-1) if kind == "causal" else weight * da
    bounds = (out, ds @ kh, ds.transpose(-1, -2) @ qh, a.transpose(-1, -2) @ gh)
    return *(relative * x.transpose(1, 2) for x in bounds), relative * dkeep.sum(dim=(1, 2))


def assert_within(got, expected, bounds):
    for name, x, y, bound in zip(("out", "dq", "dk", "dv", "dkeep"), got, expected, bounds, strict=True):
        # Where the bound is zero float64 too has its rounding: without eps, in what the maximum's column gets.
        excess = (x.double().cpu() - y).abs() / (bound + 2**-40 * y.abs().max() + 1e-30)
        assert float(excess.max()) <= 1, f"{name}: {float(excess.max()):.3g} of the bound"
