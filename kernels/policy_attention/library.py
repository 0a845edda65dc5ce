"""Registration of lavit::policy_attention and its backward."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.dispatch import Implementation, register, without_autocast
from lavit.kernels.policy_attention import cpp
from lavit.kernels.triton_support import triton_unusable


def _not_cpu(device_type: str) -> str | None:
    return None if device_type == "cpu" else "made for the CPU's caches"


OPERATION = register(
    "policy_attention",
    Implementation("triton", "streams the keys, the N x N weights never in memory", triton_unusable),
    Implementation("cpp", "a few heads at a time, one compiled pass between the products", cpp.unusable),
    Implementation("cpu", "image by image, one image's weights in the cache", _not_cpu),
    Implementation("reference", "the definition in PyTorch"),
    preference={"cuda": ("triton", "reference"), "cpu": ("cpp", "cpu", "reference")},
)


@torch.library.custom_op(
    "lavit::policy_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor keep, str kind, float eps, float scale, str impl)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
@without_autocast
def policy_attention_op(q, k, v, keep, kind, eps, scale, impl):
    return OPERATION.module(impl, q).policy_attention(q, k, v, keep, kind, eps, scale)


@policy_attention_op.register_fake
def _(q, k, v, keep, kind, eps, scale, impl):
    batch, n, heads, dim = q.shape
    lse = keep.new_empty((batch, heads, n))
    return q.new_empty(q.shape), lse, torch.empty_like(lse), keep.new_empty((batch, heads, dim))


@torch.library.custom_op(
    "lavit::policy_attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor keep, Tensor out, Tensor lse, Tensor leak, Tensor mean,"
    " str kind, float eps, float scale, str impl) -> (Tensor, Tensor, Tensor, Tensor)",
)
@without_autocast
def policy_attention_backward_op(grad, q, k, v, keep, out, lse, leak, mean, kind, eps, scale, impl):
    run = OPERATION.module(impl, q)
    return run.policy_attention_backward(grad, q, k, v, keep, out, lse, leak, mean, kind, eps, scale)


@policy_attention_backward_op.register_fake
def _(grad, q, k, v, keep, out, lse, leak, mean, kind, eps, scale, impl):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), keep.new_empty(keep.shape)


def _setup(ctx, inputs, output):
    q, k, v, keep, *ctx.settings = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(q, k, v, keep, *output)


def _backward(ctx, grad: Tensor, *_):
    return *policy_attention_backward_op(grad, *ctx.saved_tensors, *ctx.settings), None, None, None, None


policy_attention_op.register_autograd(_backward, setup_context=_setup)
