"""Attention over sets of different sizes by batched matrix products on padded blocks.

Images are put together that have the same padded sizes, and an image's padded sizes follow from its own lengths alone:
what else is in the batch cannot change a bit of its result. On the CPU, where reading the offsets costs nothing, a
padded size is the length rounded up to one of four steps an octave; on other devices, where it would be a wait, every
image is padded to the bounds ``max_q`` and ``max_k``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from lavit.kernels.varlen_attention.reference import LARGEST_EXPONENT

# Added to the logits of what must not be seen. Finite, so that a row that sees nothing stays free of NaN.
HIDDEN = -1e30
# Logits of a block at a time: a few megabytes, which stay in the cache between the steps.
BLOCK = 1 << 19


def padded_size(length: int) -> int:
    """The length rounded up to one of four steps an octave, at least to a multiple of 8."""
    step = max(8, (1 << max(length - 1, 0).bit_length()) // 8)
    return -(-length // step) * step


def blocks(
    cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, heads: int, total_q: int, total_k: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each block of b images, where its rows are: at_q (b, H, Lq), at_k (b, H, Lk) and key rows (b, Lk).

    ``at`` counts rows of the (T + 1) * H heads' rows of a tensor, ``key rows`` those of the T + 1; row T is spare: it
    stands for the padding.
    """

    def rows(cu: Tensor, images: Tensor | None, size: int, total: int) -> Tensor:
        start, end = cu[:-1].long(), cu[1:].long()
        if images is not None:
            start, end = start[images], end[images]
        row = start[:, None] + torch.arange(size, device=cu.device)
        return torch.where(row < end[:, None], row, total)

    def place(rows: Tensor) -> Tensor:
        return rows[:, None, :] * heads + torch.arange(heads, device=rows.device)[:, None]

    if cu_q.device.type != "cpu":
        rows_k = rows(cu_k, None, max_k, total_k)
        yield place(rows(cu_q, None, max_q, total_q)), place(rows_k), rows_k
        return
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for image, (n, m) in enumerate(zip(cu_q.diff().tolist(), cu_k.diff().tolist(), strict=True)):
        if n and m:
            groups[padded_size(n), padded_size(m)].append(image)
    for (size_q, size_k), members in groups.items():
        count = max(1, BLOCK // (size_q * size_k * heads))
        for images in torch.tensor(members).split(count):
            rows_k = rows(cu_k, images, size_k, total_k)
            yield place(rows(cu_q, images, size_q, total_q)), place(rows_k), rows_k


def with_spare_row(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(T, H, D) -> ((T + 1) * H, D) in the dtype computed in, the spare rows zero."""
    spare = x.new_zeros((1, *x.shape[1:]), dtype=dtype)
    return torch.cat((x.to(dtype), spare)).flatten(0, 1)


def gather(x: Tensor, at: Tensor) -> Tensor:
    """Rows of ((T + 1) * H, D) -> (b * H, L, D)."""
    return x.index_select(0, at.flatten()).view(-1, at.shape[-1], x.shape[-1])


def scatter(target: Tensor, at: Tensor, x: Tensor) -> None:
    target.index_copy_(0, at.flatten(), x.reshape(-1, *target.shape[1:]))


def bias(rows_k: Tensor, total_k: int, size_q: int, causal: bool, dtype: torch.dtype) -> Tensor:
    """(b, 1, 1 or Lq, Lk): HIDDEN at padding and, causal, at keys of higher rank than the query."""
    hidden = (rows_k == total_k)[:, None, None, :]
    if causal:
        hidden = hidden | torch.ones(size_q, rows_k.shape[1], dtype=torch.bool, device=rows_k.device).triu(1)
    return torch.zeros(hidden.shape, dtype=dtype, device=rows_k.device).masked_fill_(hidden, HIDDEN)


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
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    (total_q, heads, dim), total_k = q.shape, k.shape[0]
    out = q.new_zeros(((total_q + 1) * heads, dim), dtype=compute)
    lse = q.new_full(((total_q + 1) * heads,), torch.inf, dtype=compute)
    qs, ks, vs = (with_spare_row(x, compute) for x in (q, k, v))
    if key_weight is not None:
        log_weight = torch.cat((key_weight.to(compute), key_weight.new_ones(1, dtype=compute))).log().clamp_(min=HIDDEN)
    for at_q, at_k, rows_k in blocks(cu_q, cu_k, max_q, max_k, heads, total_q, total_k):
        shape = (*at_q.shape, at_k.shape[-1])
        b = bias(rows_k, total_k, at_q.shape[-1], causal, compute)
        if key_weight is not None:
            b += log_weight[rows_k][:, None, None, :]
        s = torch.bmm(gather(qs, at_q).mul_(scale), gather(ks, at_k).transpose(1, 2)).view(shape).add_(b)
        m = s.amax(dim=-1, keepdim=True)
        p = s.sub_(m).exp_()
        z = p.sum(dim=-1, keepdim=True)
        sees_nothing = m < HIDDEN / 2
        o = torch.bmm(p.flatten(0, 1), gather(vs, at_k)).view(*at_q.shape, dim).div_(z)
        scatter(out, at_q, o.masked_fill_(sees_nothing, 0))
        scatter(lse, at_q, z.log_().add_(m).masked_fill_(sees_nothing, torch.inf))
    out = out.view(total_q + 1, heads, dim)[:total_q]
    return out.to(q.dtype), lse.view(total_q + 1, heads)[:total_q]


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
    (total_q, heads, dim), total_k = q.shape, k.shape[0]
    qs, ks, vs, gs = (with_spare_row(x, compute) for x in (q, k, v, grad))
    delta = torch.cat(((grad.to(compute) * out.to(compute)).sum(dim=-1), lse.new_zeros(1, heads))).flatten()
    lses = torch.cat((lse, lse.new_full((1, heads), torch.inf))).flatten()
    dq, dk, dv = (torch.zeros_like(x) for x in (qs, ks, vs))
    dw = lse.new_zeros(0 if key_weight is None else total_k + 1)
    if key_weight is not None:
        weight = torch.cat((key_weight.to(compute), key_weight.new_zeros(1, dtype=compute)))
    for at_q, at_k, rows_k in blocks(cu_q, cu_k, max_q, max_k, heads, total_q, total_k):
        shape = (*at_q.shape, at_k.shape[-1])
        b = bias(rows_k, total_k, at_q.shape[-1], causal, compute)
        qb, kb, g = gather(qs, at_q).mul_(scale), gather(ks, at_k), gather(gs, at_q)
        u = torch.bmm(qb, kb.transpose(1, 2)).view(shape).add_(b).sub_(lses[at_q][..., None])
        if key_weight is not None:
            u.clamp_(max=LARGEST_EXPONENT)
        u.exp_()
        d = torch.bmm(g, gather(vs, at_k).transpose(1, 2)).view(shape).sub_(delta[at_q][..., None])
        if key_weight is None:
            p, ds = u, d.mul_(u)
        else:
            w = weight[rows_k][:, None, None, :]
            ud = d.mul_(u)
            dw.index_copy_(0, rows_k.flatten(), ud.sum(dim=(1, 2)).flatten())
            p, ds = u.mul_(w), ud.mul_(w)
        p, ds = p.flatten(0, 1), ds.flatten(0, 1)
        scatter(dv, at_k, torch.bmm(p.transpose(1, 2), g))
        scatter(dq, at_q, torch.bmm(ds, kb).mul_(scale))
        scatter(dk, at_k, torch.bmm(ds.transpose(1, 2), qb))
    dq, dk, dv = (
        g.view(-1, heads, dim)[:n].to(x.dtype) for g, x, n in ((dq, q, total_q), (dk, k, total_k), (dv, v, total_k))
    )
    return dq, dk, dv, dw if key_weight is None else dw[:total_k].to(key_weight.dtype)
