"""The merger's masked attention image by image, so that the N x N weights of one image's heads stay in the cache.

For 16 heads and 256 tokens they are 4 MB in float32; every step after the product is in place. With epsilon a row is

    out_i = (sum_j e_ij P_ij v_j + eps mean(v)) / den_i,   e_ij = exp(s_ij - m_i),   den_i = sum_j e_ij P_ij + eps

Without epsilon, and backward, one image at a time goes by the definition.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lavit.kernels.policy_attention import reference

# About the least exponent whose exponential is a normal number in float32. MKL's exp takes ten times as long below.
SMALLEST_EXPONENT = -87.0


def policy_attention(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, kind: str, eps: float, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, lse, leak and mean, as in reference.py."""
    if q.shape[0] == 0 or q.numel() == 0:
        return reference.policy_attention(q, k, v, keep, kind, eps, scale)
    forward = with_epsilon if eps > 0 else reference.policy_attention
    each = zip(*(x.split(1) for x in (q, k, v, keep)), strict=True)
    images = [forward(qb, kb, vb, keep_b, kind, eps, scale) for qb, kb, vb, keep_b in each]
    out, lse, leak, mean = (torch.cat(parts) for parts in zip(*images, strict=True))
    return out, lse, leak, mean


def with_epsilon(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, kind: str, eps: float, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One image, (1, N, H, D) x 3 and keep (1, N)."""
    qh, kh, vh = (x[0].transpose(0, 1).to(keep.dtype) for x in (q, k, v))
    s = torch.bmm(qh * scale, kh.transpose(1, 2))
    m = s.amax(dim=-1, keepdim=True)
    s.sub_(m)
    least = SMALLEST_EXPONENT if s.dtype == torch.float32 else -torch.inf
    seen = s.clamp_(min=least).exp_().mul_(reference.policy(keep, kind)[0])
    den = seen.sum(dim=-1, keepdim=True).add_(eps)
    mean = vh.mean(dim=1)
    out = torch.bmm(seen, vh).add_(mean[:, None], alpha=eps).div_(den)
    lse, leak = (m + den.log()).squeeze(-1), (eps / den).squeeze(-1)
    return out.transpose(0, 1).to(q.dtype).contiguous()[None], lse[None], leak[None], mean[None]


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
    """The gradients of reference.py."""
    if len(q) == 0:
        return reference.policy_attention_backward(grad, q, k, v, keep, out, lse, leak, mean, kind, eps, scale)
    backward: Callable[..., tuple[Tensor, ...]] = reference.policy_attention_backward
    images = [
        backward(*each, kind, eps, scale)
        for each in zip(*[x.split(1) for x in (grad, q, k, v, keep, out, lse, leak, mean)], strict=True)
    ]
    dq, dk, dv, dkeep = (torch.cat(parts) for parts in zip(*images, strict=True))
    return dq, dk, dv, dkeep
