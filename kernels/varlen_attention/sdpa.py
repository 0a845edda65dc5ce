"""Attention over sets of different sizes by batched matrix products on blocks of images.

On the CPU, where reading the offsets costs nothing, a large image is a block of its own, and without weights PyTorch's
fused kernel computes it, forward and backward; small ones are put together with those of the same padded sizes, a
length rounded up to one of four steps an octave. The block's sizes follow from the image's own lengths alone: what else
is in the batch cannot change a bit of its result. On other devices, where reading the offsets would be a wait, all
images are one block, padded to the bounds ``max_q`` and ``max_k``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from lavit.kernels.types import compute_dtype
from lavit.kernels.varlen_attention.reference import LARGEST_EXPONENT

# Added to the logits of what must not be seen. Finite, so that a row that sees nothing stays free of NaN.
HIDDEN = -1e30
# About the least exponent whose exponential is a normal number in float32.
SMALLEST_EXPONENT = -87.0
# Logits of a block of small images: a few megabytes, which stay in the cache between the steps.
BLOCK = 1 << 19
# Logits from which on an image is worth calls of its own (measured for 2 heads of 16 columns to 16 heads of 88).
LARGE = 1 << 13

# Where the rows of a block are: those of one image, or (b, H, L) indices among the (T + 1) * H rows of all heads.
# Row T is spare and stands for the padding.
Place = slice | Tensor
# The places of the queries and of the keys, and the keys' rows, (b, Lk), without regard to heads.
Block = tuple[Place, Place, Place]


def padded_size(length: int) -> int:
    """The length rounded up to one of four steps an octave, at least to a multiple of 8."""
    step = max(8, (1 << max(length - 1, 0).bit_length()) // 8)
    return -(-length // step) * step


def rows_of(cu: Tensor, images: Tensor | None, size: int, total: int) -> Tensor:
    """(b, size) rows of the given images (None: all), the padding at row ``total``."""
    start, end = cu[:-1].long(), cu[1:].long()
    if images is not None:
        start, end = start[images], end[images]
    row = start[:, None] + torch.arange(size, device=cu.device)
    return torch.where(row < end[:, None], row, total)


def padded_block(
    cu_q: Tensor, cu_k: Tensor, images: Tensor | None, size_q: int, size_k: int, heads: int, total_q: int, total_k: int
) -> Block:
    rows_q, rows_k = rows_of(cu_q, images, size_q, total_q), rows_of(cu_k, images, size_k, total_k)
    head = torch.arange(heads, device=cu_q.device)[:, None]
    return rows_q[:, None, :] * heads + head, rows_k[:, None, :] * heads + head, rows_k


def blocks_by_size(cu_q: Tensor, cu_k: Tensor, heads: int, total_q: int, total_k: int) -> Iterator[Block]:
    """Large images one by one, small ones with those of the same padded sizes. Reads the offsets."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    ends_q, ends_k = cu_q.tolist(), cu_k.tolist()
    for image in range(len(ends_q) - 1):
        at_q, at_k = slice(*ends_q[image : image + 2]), slice(*ends_k[image : image + 2])
        n, m = at_q.stop - at_q.start, at_k.stop - at_k.start
        if n * m * heads >= LARGE:
            yield at_q, at_k, at_k
        elif n and m:
            groups[padded_size(n), padded_size(m)].append(image)
    for (size_q, size_k), members in groups.items():
        for images in torch.tensor(members).split(max(1, BLOCK // (size_q * size_k * heads))):
            yield padded_block(cu_q, cu_k, images, size_q, size_k, heads, total_q, total_k)


def blocks(cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, heads: int, total_q: int, total_k: int) -> list[Block]:
    if cu_q.device.type == "cpu":
        return list(blocks_by_size(cu_q, cu_k, heads, total_q, total_k))
    if cu_q.shape[0] == 1 or max_q == 0 or max_k == 0:
        return []
    return [padded_block(cu_q, cu_k, None, max_q, max_k, heads, total_q, total_k)]


def with_spare_row(x: Tensor, dtype: torch.dtype, fill: float = 0, wanted: bool = True) -> Tensor:
    """(T, ...) -> (T + 1, ...) in the dtype computed in; only cast where no block is padded."""
    return torch.cat((x.to(dtype), x.new_full((1, *x.shape[1:]), fill, dtype=dtype))) if wanted else x.to(dtype)


def gather(x: Tensor, at: Place) -> Tensor:
    """(T + 1, H, D) -> (b * H, L, D), or (T + 1, H) -> (b * H, L)."""
    if isinstance(at, slice):
        return x[at].transpose(0, 1)
    return x.flatten(0, 1).index_select(0, at.flatten()).view(-1, at.shape[-1], *x.shape[2:])


def scatter(target: Tensor, at: Place, x: Tensor) -> None:
    """The reverse of ``gather``."""
    if isinstance(at, slice):
        target[at] = x.transpose(0, 1)
    else:
        target.flatten(0, 1).index_copy_(0, at.flatten(), x.flatten(0, 1))


def hide(s: Tensor, rows_k: Place, total_k: int, causal: bool, log_weight: Tensor | None = None) -> Tensor:
    """Add to the logits (b, H, Lq, Lk), in place, log w and HIDDEN at padding and, causal, at keys of higher rank."""
    if log_weight is not None:
        s.add_(log_weight[rows_k].view(s.shape[0], 1, 1, s.shape[3]))
    if isinstance(rows_k, Tensor):
        s.masked_fill_((rows_k == total_k)[:, None, None, :], HIDDEN)
    if causal:
        s.masked_fill_(torch.ones(s.shape[2:], dtype=torch.bool, device=s.device).triu_(1), HIDDEN)
    return s


def exp_(s: Tensor, largest: float | None = None) -> Tensor:
    """exp in place, of ``largest`` above it and 0 below e^-87: MKL's takes ten times as long for what underflows."""
    return torch.threshold_(s.clamp_(SMALLEST_EXPONENT, largest).exp_(), 1.7e-38, 0.0)


def fused(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """One image on the CPU, (L, H, D) each -> out (Lq, H, D), lse (Lq, H)."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(by_heads(x) for x in (q, k, v)), 0.0, causal, scale=scale
    )
    return out[0].transpose(0, 1), lse[0].T


def fused_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> Iterator[Tensor]:
    """dq, dk, dv of one image."""
    gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *(by_heads(x) for x in (grad, q, k, v, out)), lse.T[None], 0.0, causal, scale=scale
    )
    return (x[0].transpose(0, 1) for x in gradients)


def by_heads(x: Tensor) -> Tensor:
    """(L, H, D) -> (1, H, L, D) with rows apart and columns together in memory, as the fused kernel wants it."""
    if x.stride(2) != 1 or x.stride(0) < x.shape[2]:
        x = x.clone(memory_format=torch.contiguous_format)
    return x.transpose(0, 1)[None]


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
    """out (Tq, H, D), lse (Tq, H), as in reference.py."""
    compute = compute_dtype(q)
    (total_q, heads, dim), total_k = q.shape, k.shape[0]
    out = q.new_zeros((total_q + 1, heads, dim), dtype=compute)
    lse = q.new_full((total_q + 1, heads), torch.inf, dtype=compute)
    parts = blocks(cu_q, cu_k, max_q, max_k, heads, total_q, total_k)
    padded = any(isinstance(at_q, Tensor) for at_q, _, _ in parts)
    q_all, k_all, v_all = (with_spare_row(x, compute, wanted=padded) for x in (q, k, v))
    log_weight = None
    if key_weight is not None:
        log_weight = with_spare_row(key_weight, compute).log_().clamp_(min=HIDDEN)
    for at_q, at_k, rows_k in parts:
        if key_weight is None and isinstance(at_q, slice):
            out[at_q], lse[at_q] = fused(q_all[at_q], k_all[at_k], v_all[at_k], causal, scale)
            continue
        s = torch.bmm(gather(q_all, at_q) * scale, gather(k_all, at_k).transpose(1, 2))
        hide(s.view(-1, heads, *s.shape[1:]), rows_k, total_k, causal, log_weight)
        m = s.amax(dim=-1, keepdim=True)
        p = exp_(s.sub_(m))
        z = p.sum(dim=-1, keepdim=True)
        sees_nothing = m < HIDDEN / 2
        o = torch.bmm(p, gather(v_all, at_k)).div_(z).masked_fill_(sees_nothing, 0)
        scatter(out, at_q, o)
        scatter(lse, at_q, z.log_().add_(m).masked_fill_(sees_nothing, torch.inf).squeeze(-1))
    return out[:total_q].to(q.dtype), lse[:total_q]


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
    """The gradients of reference.py, the weights computed again from lse."""
    compute = lse.dtype
    (total_q, heads, _), total_k = q.shape, k.shape[0]
    parts = blocks(cu_q, cu_k, max_q, max_k, heads, total_q, total_k)
    padded = any(isinstance(at_q, Tensor) for at_q, _, _ in parts)
    q_all, k_all, v_all, g_all = (with_spare_row(x, compute, wanted=padded) for x in (q, k, v, grad))
    if padded or key_weight is not None:
        delta = with_spare_row((grad.to(compute) * out.to(compute)).sum(dim=-1), compute, wanted=padded)
        lse_all = with_spare_row(lse, compute, torch.inf, wanted=padded)
    log_weight = None
    if key_weight is not None:
        log_weight = with_spare_row(key_weight, compute).log_().clamp_(min=HIDDEN)
    dq, dk, dv = (lse.new_zeros((n + 1, *q.shape[1:])) for n in (total_q, total_k, total_k))
    dw = lse.new_zeros(0 if log_weight is None else log_weight.shape)
    for at_q, at_k, rows_k in parts:
        if log_weight is None and isinstance(at_q, slice):
            g, qb, kb, vb, o = g_all[at_q], q_all[at_q], k_all[at_k], v_all[at_k], out[at_q].to(compute)
            dq[at_q], dk[at_k], dv[at_k] = fused_backward(g, qb, kb, vb, o, lse[at_q], causal, scale)
            continue
        qb, kb, g = gather(q_all, at_q) * scale, gather(k_all, at_k), gather(g_all, at_q)
        s = torch.bmm(qb, kb.transpose(1, 2))
        hide(s.view(-1, heads, *s.shape[1:]), rows_k, total_k, causal)
        s.sub_(gather(lse_all, at_q)[..., None])
        d = torch.bmm(g, gather(v_all, at_k).transpose(1, 2)).sub_(gather(delta, at_q)[..., None])
        p = s
        if log_weight is not None:
            p = s.view(-1, heads, *s.shape[1:]) + log_weight[rows_k].view(s.shape[0] // heads, 1, 1, -1)
            p = p.view(s.shape)
            u = exp_(s, LARGEST_EXPONENT).mul_(d).view(-1, heads, *s.shape[1:])
            dw[rows_k] = u.sum(dim=(1, 2)).view(log_weight[rows_k].shape)
        p = exp_(p)  # at most 1, but for rounding
        d.mul_(p)
        scatter(dv, at_k, torch.bmm(p.transpose(1, 2), g))
        scatter(dq, at_q, torch.bmm(d, kb).mul_(scale))
        scatter(dk, at_k, torch.bmm(d.transpose(1, 2), qb))
    dq, dk, dv = (g[:n].to(x.dtype) for g, x, n in ((dq, q, total_q), (dk, k, total_k), (dv, v, total_k)))
    return dq, dk, dv, dw if key_weight is None else dw[:total_k].to(key_weight.dtype)
