"""The compiled form (csrc/cpu/policy_attention.cpp): torch's products of a few heads, and between them one pass.

The heads' N x N weights stay in the second-level cache from the product that makes them to the one that uses them; for
N = 256 those of two heads are 512 KB in float32. Without epsilon the form "cpu" computes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lavit.kernels.extension import cpu_operator_unusable
from lavit.kernels.policy_attention import cpu

VECTOR_BYTES = 0  # of the vectors to compute with: 16, 32 or 64; 0 for the widest that the machine has
CACHED_BYTES = 2**19  # of weights that a thread makes before they are used


def unusable(device_type: str) -> str | None:
    return cpu_operator_unusable("policy_weights", device_type)


def _together(n: int, heads: int, dtype: torch.dtype) -> int:
    """How many heads of an image are computed at a time."""
    return min(heads, max(1, CACHED_BYTES * torch.get_num_threads() // (n * n * dtype.itemsize)))


def _parts(batch: int, heads: int, step: int) -> Iterator[tuple[int, slice]]:
    """Images, and of each one ``step`` heads after the other."""
    for b in range(batch):
        for first in range(0, heads, step):
            yield b, slice(first, min(first + step, heads))


def _scores(room: Tensor, q: Tensor, k: Tensor, scale: float) -> Tensor:
    """scale q k^T of (H, N, D) x 2 in ``room`` (at least H, N, N), which is warm from the heads before."""
    room = room[: len(q)]
    return torch.baddbmm(room, q, k.transpose(1, 2), beta=0, alpha=scale, out=room)


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
    step = _together(n, heads, keep.dtype)
    room = keep.new_empty((step, n, n))
    for b, h in _parts(batch, heads, step):
        weights = _scores(room, qh[b, h], kh[b, h], scale)
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
    batch, n, heads, _ = q.shape
    step = _together(n, heads, keep.dtype)
    rooms = keep.new_empty((2, step, n, n))
    for b, h in _parts(batch, heads, step):
        weights = _scores(rooms[0], qh[b, h], kh[b, h], scale)
        ds = _scores(rooms[1], g[b, h], vh[b, h], 1)  # of a for now
        sums = torch.ops.lavit_cpp.policy_gradients(
            weights, ds, keep[b].contiguous(), lse[b, h], leak[b, h], kind == "cross", scale, VECTOR_BYTES
        )
        dkeep[b] += sums.sum(dim=(0, 1))
        for to, a, x in ((dv, weights.transpose(1, 2), g), (dq, ds, kh), (dk, ds.transpose(1, 2), qh)):
            to[b, :, h] = torch.bmm(a, x[b, h]).transpose(0, 1)
    return dq, dk, dv, dkeep
