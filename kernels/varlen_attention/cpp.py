"""The compiled form (csrc/cpu/varlen_attention.cpp): one head of one image at a time, all of it in the cache.

Queries are in the lanes of vectors, so that the maximum, the exponential and the sum over a query's keys need nothing
of other lanes, and products with the weights have the columns there. Nothing is padded, gathered or made contiguous.
Which vectors there are is found when it runs; threads have whole heads, so that their number changes no bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.extension import cpu_operator_unusable
from lavit.kernels.types import compute_dtype

VECTOR_BYTES = 0  # of the vectors to compute with: 16, 32 or 64; 0 for the widest that the machine has


def unusable(device_type: str) -> str | None:
    return cpu_operator_unusable("varlen_attention", device_type)


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
    return torch.ops.lavit_cpp.varlen_attention(
        q, k, v, cu_q.contiguous(), cu_k.contiguous(), _weight(key_weight, q), causal, scale, VECTOR_BYTES
    )


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
    offsets_and_weight = cu_q.contiguous(), cu_k.contiguous(), _weight(key_weight, q)
    dq, dk, dv, dw = torch.ops.lavit_cpp.varlen_attention_backward(
        grad, q, k, v, out, lse.contiguous(), *offsets_and_weight, causal, scale, VECTOR_BYTES
    )
    return dq, dk, dv, dw if key_weight is None else dw.to(key_weight.dtype)


def _weight(key_weight: Tensor | None, q: Tensor) -> Tensor | None:
    return None if key_weight is None else key_weight.to(compute_dtype(q)).contiguous()
