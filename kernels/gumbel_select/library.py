"""Registration of lavit::gumbel_select and its backward: implementations, shapes, gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.dispatch import Implementation, register
from lavit.kernels.gumbel_select import cpp
from lavit.kernels.triton_support import triton_unusable
from lavit.kernels.types import compute_dtype

OPERATION = register(
    "gumbel_select",
    Implementation("triton", "noise, decision and partition of an image in one program", triton_unusable),
    Implementation("cpp", "noise, decision and partition in one compiled pass", cpp.unusable),
    Implementation("reference", "the definition in PyTorch"),
    preference={"cuda": ("triton", "reference"), "cpu": ("cpp", "reference")},
)


@torch.library.custom_op(
    "lavit::gumbel_select",
    mutates_args=(),
    schema="(Tensor scores, Tensor? noise, Tensor? seeds, float tau, int min_keep, str impl)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def gumbel_select_op(scores, noise, seeds, tau, min_keep, impl):
    return OPERATION.module(impl, scores).gumbel_select(scores, noise, seeds, tau, min_keep)


@gumbel_select_op.register_fake
def _(scores, noise, seeds, tau, min_keep, impl):
    batch, num_patches, _ = scores.shape
    rows = scores.new_empty((batch, num_patches), dtype=compute_dtype(scores))
    order = scores.new_empty((batch, num_patches), dtype=torch.int32)
    cu = scores.new_empty((batch + 1,), dtype=torch.int32)
    return rows, torch.empty_like(rows), order, cu, torch.empty_like(cu)


@torch.library.custom_op(
    "lavit::gumbel_select_backward",
    mutates_args=(),
    schema="(Tensor? grad_keep, Tensor? grad_prob, Tensor prob, float tau, ScalarType dtype, str impl) -> Tensor",
)
def gumbel_select_backward_op(grad_keep, grad_prob, prob, tau, dtype, impl):
    return OPERATION.module(impl, prob).gumbel_select_backward(grad_keep, grad_prob, prob, tau, dtype)


@gumbel_select_backward_op.register_fake
def _(grad_keep, grad_prob, prob, tau, dtype, impl):
    return prob.new_empty((*prob.shape, 2), dtype=dtype)


def _setup(ctx, inputs, output):
    scores, _, _, ctx.tau, _, ctx.impl = inputs
    ctx.dtype = scores.dtype
    _, prob, order, cu_kept, cu_dropped = output
    ctx.save_for_backward(prob)
    ctx.mark_non_differentiable(order, cu_kept, cu_dropped)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_keep: Tensor | None, grad_prob: Tensor | None, *_):
    (prob,) = ctx.saved_tensors
    grad = None
    if grad_keep is not None or grad_prob is not None:
        grad = gumbel_select_backward_op(grad_keep, grad_prob, prob, ctx.tau, ctx.dtype, ctx.impl)
    return grad, None, None, None, None, None


gumbel_select_op.register_autograd(_backward, setup_context=_setup)
