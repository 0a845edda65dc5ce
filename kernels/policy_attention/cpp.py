"""The compiled form (csrc/cpu/policy_attention.cpp): torch's products of a few heads, and between them one pass.

The heads' N x N weights stay in the second-level cache from the product that makes them to the one that uses them; for
N = 256 those of four heads are 1 MB in float32. Without epsilon the form "cpu" computes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lavit.kernels.extension import cpu_operator_unusable
from lavit.kernels.policy_attention import cpu

VECTOR_BYTES = 0  # of the vectors to compute with: 16, 32 or 64; 0 for the widest that the machine has
CACHED_BYTES = 2**20  # of weights that a thread makes before they are used


def unusable(device_type: str) -> str | None:
    return cpu_operator_unusable("policy_weights", device_type)


def _heads(x: Tensor, compute: torch.dtype) -> Iterator[tuple[int, slice]]:
    """Image and heads of x (B, N, H, D) that are computed together."""
    batch, n, heads, _ = x.shape
    step = max(1, CACHED_BYTES * torch.get_num_threads() // (n * n * compute.itemsize))
    for b in range(batch):
        for first in range(0, heads, step):
            yield b, slice(first, min(first + step, heads))


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """scale q k^T of (H, N, D) x 2: (H, N, N)."""
    heads, n, _ = q.shape
    return torch.baddbmm(q.new_empty(heads, n, n), q, k.transpose(1, 2), beta=0, alpha=scale)


def policy_attention(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, kind: str, eps: float, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, lse, leak and mean, as in reference.py."""
    if q.numel() == 0 or eps == 0:
        return cpu.policy_attention(q, k, v, keep, kind, eps, scale)
    batch, n, heads, _ = q.shape
    qh, kh, vh = (x.to(keep.dtype).transpose(1, 2) for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = keep.new_empty((batch, heads, n))
    leak = torch.empty_like(lse)
    for b, h in _heads(q, keep.dtype):
        weights = _scores(qh[b, h], kh[b, h], scale)
        torch.ops.lavit_cpp.policy_weights(
            weights, keep[b].contiguous(), lse[b, h], leak[b, h], kind == "cross", eps, VECTOR_BYTES
        )
        out[b, :, h] = torch.bmm(weights, vh[b, h]).transpose(0, 1)
    return out, lse, leak, vh.mean(dim=2)


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
    if q.numel() == 0 or eps == 0:
        return cpu.policy_attention_backward(grad, q, k, v, keep, out, lse, leak, mean, kind, eps, scale)
    qh, kh, vh, g = (x.to(keep.dtype).transpose(1, 2) for x in (q, k, v, grad))
    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    dkeep = torch.zeros_like(keep)
    for b, h in _heads(q, keep.dtype):
        weights, ds = _scores(qh[b, h], kh[b, h], scale), torch.bmm(g[b, h], vh[b, h].transpose(1, 2))
        sums = torch.ops.lavit_cpp.policy_gradients(
            weights, ds, keep[b].contiguous(), lse[b, h], leak[b, h], kind == "cross", scale, VECTOR_BYTES
        )
        dkeep[b] += sums.sum(dim=(0, 1))
        for to, a, x in ((dv, weights.transpose(1, 2), g), (dq, ds, kh), (dk, ds.transpose(1, 2), qh)):
            to[b, :, h] = torch.bmm(a, x[b, h]).transpose(0, 1)
    return dq, dk, dv, dkeep
