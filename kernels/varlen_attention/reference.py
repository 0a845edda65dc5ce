"""Attention over sets of different sizes, one image after the other: the definition, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from math import log

import torch
from torch import Tensor

from lavit.kernels.types import compute_dtype

Image = tuple[slice, slice]

# Of what a removed key would weigh: with a logit far above the others' that is beyond float32, and the gradient of the
# key's weight, a sum of both signs, would be NaN.
LARGEST_EXPONENT = 64 * log(2)


def images(cu_q: Tensor, cu_k: Tensor) -> Iterator[Image]:
    """The rows of each image's queries and keys. Reads the offsets on the host."""
    a, b = cu_q.tolist(), cu_k.tolist()
    for i in range(len(a) - 1):
        yield slice(a[i], a[i + 1]), slice(b[i], b[i + 1])


def logits(q: Tensor, k: Tensor, log_weight: Tensor | None, causal: bool, scale: float) -> Tensor:
    """s_ij + log w_j for one image, (H, Lq, Lk); causal: -inf where the key's rank exceeds the query's."""
    s = scale * torch.einsum("ihd,jhd->hij", q, k)
    if log_weight is not None:
        s = s + log_weight
    return without_future(s) if causal else s


def without_future(s: Tensor) -> Tensor:
    """(..., Lq, Lk) with -inf where the key's rank exceeds the query's, whatever was there."""
    return s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu(1), -torch.inf)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    key_weight: Tensor | None,
    max_q: int,
    max_k: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """out (Tq, H, D) in q's dtype and lse (Tq, H) = log sum_j w_j exp(s_ij), +inf where the set of keys is empty."""
    compute = compute_dtype(q)
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = torch.full(q.shape[:2], torch.inf, dtype=compute, device=q.device)
    log_weight = None if key_weight is None else key_weight.to(compute).log()
    for i, j in images(cu_q, cu_k):
        s = logits(q[i].to(compute), k[j].to(compute), None if log_weight is None else log_weight[j], causal, scale)
        total = s.logsumexp(dim=-1, keepdim=True)
        total = torch.where(total == -torch.inf, torch.inf, total)
        out[i] = torch.einsum("hij,jhd->ihd", (s - total).exp(), v[j].to(compute)).to(q.dtype)
        lse[i] = total.squeeze(-1).T
    return out, lse


def varlen_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    key_weight: Tensor | None,
    max_q: int,
    max_k: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to q, k, v and key_weight ((0,) without one). With g the gradient of the output:

    p_ij = w_j u_ij, u_ij = exp(s_ij - lse_i);   dv_j = sum_i p_ij g_i
    d_ij = g_i . v_j - g_i . out_i;              ds_ij = p_ij d_ij;   dw_j = sum over heads and i of u_ij d_ij
    u does not contain w: the gradient of a key of weight 0 is right too, up to a u of 2^64. p, which is at most 1, is
    computed without u, so that nothing of a removed key but its weight has a gradient, whatever its logit.
    """
    dq, dk, dv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    w = None if key_weight is None else key_weight.to(lse.dtype)
    dw = lse.new_zeros(0 if w is None else w.shape)
    for i, j in images(cu_q, cu_k):
        qi, kj, vj, g, oi = (x.to(lse.dtype) for x in (q[i], k[j], v[j], grad[i], out[i]))
        exponent = logits(qi, kj, None, False, scale) - lse[i].T[..., None]
        exponent = without_future(exponent) if causal else exponent
        p = (exponent if w is None else exponent + w[j].log()).clamp(max=0).exp()
        d = torch.einsum("ihd,jhd->hij", g, vj) - torch.einsum("ihd,ihd->hi", g, oi)[..., None]
        ds = p * d * scale
        dq[i] = torch.einsum("hij,jhd->ihd", ds, kj).to(q.dtype)
        dk[j] = torch.einsum("hij,ihd->jhd", ds, qi).to(k.dtype)
        dv[j] = torch.einsum("hij,ihd->jhd", p, g).to(v.dtype)
        if w is not None:
            dw[j] = (exponent.clamp(max=LARGEST_EXPONENT).exp() * d).sum(dim=(0, 1))
    return dq, dk, dv, dw if key_weight is None else dw.to(key_weight.dtype)
