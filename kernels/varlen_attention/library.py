"""Registration of lavit::varlen_attention and its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lavit.kernels.checks import verify_not_negative, verify_offsets, verify_same_offsets
from lavit.kernels.dispatch import Implementation, direct, register, without_autocast
from lavit.kernels.triton_support import triton_unusable
from lavit.kernels.types import compute_dtype
from lavit.kernels.varlen_attention import cpp
from lavit.kernels.varlen_attention.packages import PACKAGES

OPERATION = register(
    "varlen_attention",
    Implementation("triton", "tiles on tensor cores, the logits never in memory", triton_unusable),
    Implementation("cpp", "a head at a time, all of it in the cache", cpp.unusable),
    Implementation("sdpa", "batched matrix products on padded blocks"),
    *(Implementation(package.name, package.why, package.unusable) for package in PACKAGES.values()),
    Implementation("reference", "the definition in PyTorch, image by image"),
    preference={"cuda": ("triton", "sdpa", "reference"), "cpu": ("cpp", "sdpa", "reference")},
)


def _implementation(impl: str, q: Tensor) -> Any:
    return PACKAGES.get(OPERATION.choose(impl, q.device)) or OPERATION.module(impl, q)


def _verify(q, k, cu_q, cu_k, key_weight, max_q, max_k, causal) -> None:
    verify_offsets("cu_q", cu_q, total=q.shape[0], longest=max_q, bound="max_q")
    end = verify_offsets("cu_k", cu_k, total=k.shape[0], longest=max_k, bound="max_k")
    if causal:
        verify_same_offsets("cu_k", cu_k, "cu_q with causal=True", cu_q)
    if key_weight is not None and end is not None:
        verify_not_negative("key_weight", key_weight[:end])


@torch.library.custom_op(
    "lavit::varlen_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor cu_q, Tensor cu_k, Tensor? key_weight, SymInt max_q, SymInt max_k,"
    " bool causal, float scale, str impl) -> (Tensor, Tensor)",
)
@without_autocast
def varlen_attention_op(q, k, v, cu_q, cu_k, key_weight, max_q, max_k, causal, scale, impl):
    _verify(q, k, cu_q, cu_k, key_weight, max_q, max_k, causal)
    run = _implementation(impl, q).varlen_attention
    bounds = min(max_q, q.shape[0]), min(max_k, k.shape[0])  # of a grid: what no image can have is not launched
    return run(q, k, v, cu_q, cu_k, key_weight, *bounds, causal, scale)


@varlen_attention_op.register_fake
def _(q, k, v, cu_q, cu_k, key_weight, max_q, max_k, causal, scale, impl):
    compute = compute_dtype(q)
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=compute)


@torch.library.custom_op(
    "lavit::varlen_attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor cu_q, Tensor cu_k,"
    " Tensor? key_weight, SymInt max_q, SymInt max_k, bool causal, float scale, str impl)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
@without_autocast
def varlen_attention_backward_op(grad, q, k, v, out, lse, cu_q, cu_k, key_weight, max_q, max_k, causal, scale, impl):
    run = _implementation(impl, q).varlen_attention_backward
    bounds = min(max_q, q.shape[0]), min(max_k, k.shape[0])
    return run(grad, q, k, v, out, lse, cu_q, cu_k, key_weight, *bounds, causal, scale)


@varlen_attention_backward_op.register_fake
def _(grad, q, k, v, out, lse, cu_q, cu_k, key_weight, max_q, max_k, causal, scale, impl):
    dw = lse.new_empty(0) if key_weight is None else key_weight.new_empty(key_weight.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dw


def _setup(ctx, inputs, output):
    q, k, v, cu_q, cu_k, key_weight, *ctx.settings = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse, cu_q, cu_k, key_weight)
    ctx.mark_non_differentiable(lse)


def _backward(ctx, grad: Tensor, _):
    saved = ctx.saved_tensors
    dq, dk, dv, dw = varlen_attention_backward_op(grad, *saved, *ctx.settings)
    return dq, dk, dv, None, None, None if saved[-1] is None else dw, None, None, None, None, None


varlen_attention_op.register_autograd(_backward, setup_context=_setup)


class _Direct(torch.autograd.Function):
    """The operator's body with the compiled form. A registered operator written in Python takes 0.1 ms of a CPU in each
    direction, as much as the attention of a small model's batch."""

    @staticmethod
    def forward(ctx, q, k, v, cu_q, cu_k, key_weight, max_q, max_k, causal, scale):
        _verify(q, k, cu_q, cu_k, key_weight, max_q, max_k, causal)
        settings = max_q, max_k, causal, scale
        out, lse = cpp.varlen_attention(q, k, v, cu_q, cu_k, key_weight, *settings)
        ctx.save_for_backward(q, k, v, out, lse, cu_q, cu_k, key_weight)
        ctx.settings = settings
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        saved = ctx.saved_tensors
        dq, dk, dv, dw = cpp.varlen_attention_backward(grad, *saved, *ctx.settings)
        return dq, dk, dv, None, None, None if saved[-1] is None else dw, None, None, None, None


def attend(q, k, v, cu_q, cu_k, key_weight, max_q, max_k, causal, scale, impl):
    """The operator's first result, past its registration where the compiled form runs."""
    plain = q.device.type == "cpu" and direct(q, k, v, cu_q, cu_k, key_weight, gradient=True)
    if plain and OPERATION.choose(impl, q.device) == "cpp":
        return _Direct.apply(q, k, v, cu_q, cu_k, key_weight, max_q, max_k, causal, scale)
    return varlen_attention_op(q, k, v, cu_q, cu_k, key_weight, max_q, max_k, causal, scale, impl)[0]
