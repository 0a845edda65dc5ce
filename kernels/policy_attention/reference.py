"""The merger's masked attention as the release computes it, forward and backward, in the formula's own symbols."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

# Without eps, of what a masked column would weigh, which only its mask's gradient sees: it may be beyond float32.
LARGEST_EXPONENT = 64 * log(2)


def policy(keep: Tensor, kind: str) -> Tensor:
    """P (B, 1, N, N): causal, 1 on the diagonal and keep_j for j < i; cross, 1 - keep_j. Query i, key j."""
    batch, n = keep.shape
    if kind == "cross":
        return (1 - keep)[:, None, None, :].expand(batch, 1, n, n)
    below = keep[:, None, :].expand(batch, n, n).tril(-1)
    return (below + torch.eye(n, dtype=keep.dtype, device=keep.device))[:, None]


def weights(q: Tensor, k: Tensor, keep: Tensor, kind: str, eps: float, scale: float) -> tuple[Tensor, ...]:
    """a, u, P, den, argmax and m.

    a_ij = (e_ij P_ij + eps/N) / den_i, den_i = sum_j e_ij P_ij + eps, e_ij = exp(s_ij - m_i), u_ij = e_ij / den_i
    q, k (B, H, N, D). m_i = max_j s_ij, which cancels where eps is 0: then over the columns with P_ij != 0, so that no
    masked one matters however large, and u_ij of those ends at 2^64. A row that sees none has den inf: weights 0.
    """
    s = scale * (q @ k.transpose(-1, -2))
    p = policy(keep, kind)
    seen = p != 0
    m, argmax = (s if eps > 0 else s.masked_fill(~seen, -torch.inf)).max(dim=-1, keepdim=True)
    m = m.masked_fill(m == -torch.inf, 0)
    e = (s - m).exp()
    w = e * p if eps > 0 else torch.where(seen, e * p, 0)
    den = w.sum(dim=-1, keepdim=True) + eps
    den = torch.where(den <= 0, torch.inf, den)
    u = e / den
    if eps == 0:
        u = torch.where(seen, u, (s - m - den.log()).clamp(max=LARGEST_EXPONENT).exp())
    return (w + eps / q.shape[2]) / den, u, p, den, argmax, m


def policy_attention(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, kind: str, eps: float, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B, N, H, D) x 3, keep (B, N) -> out (B, N, H, D) in q's dtype. Computed in that of keep, float32 or float64.

    And what a streaming backward needs, in keep's dtype: lse (B, H, N), m + log den, so that a row's weights are
    P_ij exp(s_ij - lse_i) + leak_i / N; leak (B, H, N), eps / den; mean (B, H, D) of v over the tokens.
    """
    batch, n, heads, dim = q.shape
    if q.numel() == 0:
        lse = keep.new_zeros((batch, heads, n))
        return q.new_empty(q.shape), lse, lse.clone(), keep.new_zeros((batch, heads, dim))
    qh, kh, vh = (x.transpose(1, 2).to(keep.dtype) for x in (q, k, v))
    a, _, _, den, _, m = weights(qh, kh, keep, kind, eps, scale)
    out = (a @ vh).transpose(1, 2).to(q.dtype).contiguous()
    return out, (m + den.log()).squeeze(-1), (eps / den).squeeze(-1), vh.mean(dim=2)


def policy_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor,
    out: Tensor,
    lse: Tensor,
    leak: Tensor,
    mean: Tensor,
    kind: str,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to q, k, v and keep, from the inputs alone. With g the gradient of the output:

    dv_j  = sum_i a_ij g_i
    d_ij  = g_i . v_j - g_i . out_i
    dP_ij = u_ij d_ij
    ds_ij = P_ij dP_ij, and -sum_j P_ij dP_ij more at the column of the row's maximum, which every e_ij was divided by
            (without eps that sum is 0)
    dkeep_j = sum of dP_ij over heads and i > j (causal: the diagonal is 1 whatever keep is),
            minus the sum over heads and all i (cross)
    """
    if q.numel() == 0:
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.zeros_like(keep)
    qh, kh, vh, g = (x.transpose(1, 2).to(keep.dtype) for x in (q, k, v, grad))
    a, u, p, _, argmax, _ = weights(qh, kh, keep, kind, eps, scale)
    dv = a.transpose(-1, -2) @ g
    da = g @ vh.transpose(-1, -2)
    d = da - (a * da).sum(dim=-1, keepdim=True)
    ds = u * p * d
    if eps > 0:
        ds = ds.scatter_add(-1, argmax, -ds.sum(dim=-1, keepdim=True))
    ds = ds * scale
    dp = (u * d).sum(dim=1)
    dkeep = -dp.sum(dim=1) if kind == "cross" else dp.tril(-1).sum(dim=1)
    dq, dk = ds @ kh, ds.transpose(-1, -2) @ qh
    return *(x.transpose(1, 2).to(q.dtype).contiguous() for x in (dq, dk, dv)), dkeep  # type: ignore[return-value]
