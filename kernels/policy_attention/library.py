"""Registration of lavit::policy_attention and its backward."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.dispatch import Implementation, register, without_autocast
from lavit.kernels.policy_attention import reference

OPERATION = register("policy_attention", Implementation("reference", "the definition in PyTorch"))


@torch.library.custom_op(
    "lavit::policy_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor keep, str kind, float eps, float scale, str impl) -> Tensor",
)
@without_autocast
def policy_attention_op(q, k, v, keep, kind, eps, scale, impl):
    OPERATION.choose(impl, q.device)
    return reference.policy_attention(q, k, v, keep, kind, eps, scale)


@policy_attention_op.register_fake
def _(q, k, v, keep, kind, eps, scale, impl):
    return q.new_empty(q.shape)


@torch.library.custom_op(
    "lavit::policy_attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor keep, str kind, float eps, float scale, str impl)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
@without_autocast
def policy_attention_backward_op(grad, q, k, v, keep, kind, eps, scale, impl):
    OPERATION.choose(impl, q.device)
    return reference.policy_attention_backward(grad, q, k, v, keep, kind, eps, scale)


@policy_attention_backward_op.register_fake
def _(grad, q, k, v, keep, kind, eps, scale, impl):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), keep.new_empty(keep.shape)


def _setup(ctx, inputs, output):
    q, k, v, keep, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, keep)


def _backward(ctx, grad: Tensor):
    return *policy_attention_backward_op(grad, *ctx.saved_tensors, *ctx.settings), None, None, None, None


policy_attention_op.register_autograd(_backward, setup_context=_setup)
