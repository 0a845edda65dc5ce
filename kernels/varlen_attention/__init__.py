"""Attention within each image of a packed batch: the merger's packed form and the decoder's cross-attention."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.checks import (
    check_float,
    check_offsets,
    check_rank,
    check_same_device,
    check_same_dtype,
    check_shape,
)
from lavit.kernels.varlen_attention.library import attend

__all__ = ["varlen_attention", "warm_up"]


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    causal: bool = False,
    key_weight: Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """out_i = sum_j softmax_j(s_ij + log w_j) v_j over the keys j of the query's own image (LaVIT eq. 1-2, no epsilon).

    q: (Tq, H, D). k, v: (Tk, H, D), dtype of q.
    cu_q, cu_k: (B + 1,) int32 offsets of the images' rows; they may end before Tq or Tk (rows beyond are unused).
    max_q, max_k: upper bounds of the images' numbers of rows, known to the host.
    causal: query of rank r sees the keys of rank <= r; cu_q and cu_k must be equal.
    key_weight: (Tk,) floating, >= 0. Weight 0 removes a key, and has a gradient nevertheless.
    scale: of the logits; default D^-1/2.

    Returns (Tq, H, D) in q's dtype. An image without keys, or with weights 0 only, gives zeros and no gradient; unused
    rows give zeros. Raises ValueError or TypeError on a wrong shape, dtype or device, and on the CPU (elsewhere under
    LAVIT_DEBUG=1, without which they give wrong results) ValueError for offsets that do not begin at 0, that fall, end
    beyond the rows, exceed ``max_q`` or ``max_k`` or, causal, differ, and for weights that are negative.
    """
    check_float("q", q, "(Tq, H, D)")
    check_rank("k", k, "(Tk, H, D)")
    check_shape("k", k, (k.shape[0], *q.shape[1:]), "q")
    check_shape("v", v, k.shape, "k")
    check_offsets("cu_q", cu_q, q.device)
    check_offsets("cu_k", cu_k, q.device, cu_q.shape[0] - 1)
    for name, x in (("k", k), ("v", v)):
        check_same_dtype(name, x, "q", q)
        check_same_device(name, x, "q", q)
    if key_weight is not None:
        check_float("key_weight", key_weight)
        check_shape("key_weight", key_weight, k.shape[:1], "k")
        check_same_device("key_weight", key_weight, "q", q)
    if max_q < 0 or max_k < 0:
        raise ValueError(f"max_q, max_k: expected bounds of at least 0, got {max_q} and {max_k}")
    if causal and q.shape[0] != k.shape[0]:
        raise ValueError(f"k: expected as many rows as q ({q.shape[0]}) with causal=True, got {k.shape[0]}")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return attend(q, k, v, cu_q, cu_k, key_weight, max_q, max_k, causal, scale, impl)


def warm_up(
    dim: int,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cuda",
    *,
    causal: bool = False,
    weighted: bool = False,
    impl: str = "auto",
) -> None:
    """Compile what calls of this kind run, forward and backward, so that none does later, as while a CUDA graph is
    recorded. Numbers of images, rows and heads, strides and the scale do not matter.

    dim: D. dtype: of q. weighted: whether they have a key_weight.
    """
    q, k, v = (torch.zeros(1, 1, dim, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    cu, weight = torch.arange(2, dtype=torch.int32, device=device), torch.ones(1, device=device)
    with torch.enable_grad():
        out = varlen_attention(q, k, v, cu, cu, 1, 1, causal=causal, key_weight=weight if weighted else None, impl=impl)
    torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
