"""flash-attn's kernels for variable lengths, where that package is installed: for comparison, by impl= only.

Through its public function alone, whose arguments have been the same for years. That function keeps to itself what its
backward needs: here the backward computes the forward again.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

LARGEST = 256


def unusable(device_type: str) -> str | None:
    if device_type != "cuda":
        return "flash-attn needs a GPU"
    return None if importlib.util.find_spec("flash_attn") else "flash-attn is not installed"


def _attend(
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
) -> Tensor:
    """flash-attn's result, differentiable; raises ValueError for what the package cannot do."""
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"q: flash_attn needs float16 or bfloat16, got {q.dtype}")
    if key_weight is not None:
        raise ValueError("key_weight: flash_attn has no weights of keys, got some")
    if q.shape[-1] > LARGEST or q.shape[-1] % 8:
        raise ValueError(f"q: flash_attn needs a width of at most {LARGEST}, a multiple of 8, got {q.shape[-1]}")
    attend = importlib.import_module("flash_attn").flash_attn_varlen_func
    return attend(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=scale, causal=causal)


def _used(x: Tensor, cu: Tensor) -> Tensor:
    """x with zeros in the rows beyond the last offset, which the package leaves as they were allocated."""
    used = torch.arange(x.shape[0], device=x.device) < cu[-1]
    return torch.where(used[:, None, None], x, 0)


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, *settings: Any
) -> tuple[Tensor, Tensor]:
    """out as in reference.py; lse is without meaning."""
    out = _attend(q, k, v, cu_q, cu_k, *settings)
    return _used(out, cu_q).contiguous(), q.new_empty(q.shape[:2], dtype=torch.float32)


def varlen_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of reference.py."""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    with torch.enable_grad():
        again = _attend(q, k, v, cu_q, cu_k, *settings)
    dq, dk, dv = torch.autograd.grad(again, (q, k, v), grad)
    return _used(dq, cu_q), _used(dk, cu_k), _used(dv, cu_k), lse.new_empty(0)
