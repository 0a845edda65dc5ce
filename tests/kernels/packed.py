"""Random packed batches for the tests of varlen_attention, and what rounding may do to its results."""

from __future__ import annotations

import torch

from lavit.kernels import varlen_attention
from lavit.kernels.varlen_attention import reference

UNIT = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def offsets(lengths, device):
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


def inputs(lengths_q, lengths_k, dim, dtype, device, heads=1, spare=3, seed=0):
    """q, k, v, a gradient and weights of keys (0, 1 and between), with unused rows at the end."""
    generator = torch.Generator().manual_seed(seed)
    rows = [sum(lengths_q) + spare, sum(lengths_k) + spare]
    q, k, v, g = (torch.randn(rows[i], heads, dim, generator=generator).to(device, dtype) for i in (0, 1, 1, 0))
    u = torch.rand(rows[1], generator=generator).to(device)
    return q, k, v, g, torch.where(u < 0.3, 0, torch.where(u > 0.6, 1, u))


def run(impl, q, k, v, g, w, lengths_q, lengths_k, causal=False):
    """out, dq, dk, dv and, with weights, dw."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v) + (() if w is None else (w,))]
    settings = offsets(lengths_q, q.device), offsets(lengths_k, q.device), max(lengths_q), max(lengths_k)
    weight = None if w is None else leaves[3]
    out = varlen_attention(*leaves[:3], *settings, causal=causal, key_weight=weight, impl=impl)
    return out.detach(), *torch.autograd.grad(out, leaves, g)


def truth_and_bounds(q, k, v, g, w, lengths_q, lengths_k, causal):
    """The definition in float64, and what rounding may add to each element.

    u = 2^-24 is float32's unit, h that of the 16 bits to which p, ds and the results are rounded (0 for float32), and
    2^-25 half the spacing of float16's smallest numbers. A sum of n terms errs by at most (n + 2) u of the sum of
    magnitudes, exp2 and log2 by 4 u; an exponent's error is the relative error of what it is the exponent of.
    """
    u, h = 2.0**-24, UNIT[q.dtype]
    tiny = 2.0**-25 if q.dtype == torch.float16 else 0.0
    q, k, v, g = (x.double().cpu() for x in (q, k, v, g))
    heads, dim = q.shape[1:]
    scale = dim**-0.5
    weighted = w is not None
    w = w.double().cpu() if weighted else q.new_ones(k.shape[0])
    cu = offsets(lengths_q, "cpu"), offsets(lengths_k, "cpu")
    out, lse = reference.varlen_attention(q, k, v, *cu, w, 0, 0, causal, scale)
    exact = [out, *reference.varlen_attention_backward(g, q, k, v, out, lse, *cu, w, 0, 0, causal, scale)]
    bounds = [torch.zeros_like(x) for x in exact]
    for i, j in reference.images(*cu):
        n, m = i.stop - i.start, j.stop - j.start
        qa, ka, va, ga = q[i].abs(), k[j].abs(), v[j].abs(), g[i].abs()
        s = reference.logits(q[i], k[j], None, causal, scale)
        total = lse[i].T[..., None]
        ratio = (s - total).exp()
        p = ratio * w[j]
        size = scale * torch.einsum("ihd,jhd->hij", qa, ka)
        seen = torch.where(s > -torch.inf, size, 0)
        shift = seen.amax(-1, keepdim=True) if m else seen.new_zeros(heads, n, 1)
        finite = torch.where(total < torch.inf, total, 0).abs()
        # s and lse, each in its own error, and the roundings of p itself.
        r = ((dim + 8) * u * (seen + shift) + 4 * u * finite + (m + 16) * u).expm1()
        pr = p * (r + h)
        bounds[0][i] = torch.einsum("hij,jhd->ihd", pr + m * u * p + tiny, va) + (h * out[i].abs() + tiny)
        d = torch.einsum("ihd,jhd->hij", g[i], v[j]) - torch.einsum("ihd,ihd->hi", g[i], out[i])[..., None]
        e = (dim + 2) * u * torch.einsum("ihd,jhd->hij", ga, va)
        e = e + torch.einsum("ihd,ihd->hi", ga, bounds[0][i] + (dim + 2) * u * out[i].abs())[..., None]
        error = p * ((r + h) * d.abs() + (1 + r + h) * e)
        bounds[1][i] = scale * torch.einsum("hij,jhd->ihd", error + m * u * p * d.abs() + tiny, ka)
        bounds[2][j] = scale * torch.einsum("hij,ihd->jhd", error + n * u * p * d.abs() + tiny, qa)
        bounds[3][j] = torch.einsum("hij,ihd->jhd", pr + n * u * p + tiny, ga)
        bounds[4][j] = (ratio * (r * d.abs() + (1 + r) * e + (n * heads + 2) * u * d.abs())).sum((0, 1))
    for x, bound in zip(exact[1:4], bounds[1:4], strict=True):
        bound += h * x.abs() + tiny
    return list(zip(exact, bounds, strict=True))[: 4 + weighted]
