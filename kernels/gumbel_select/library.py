"""Registration of lavit::gumbel_select: implementations, shapes, gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.dispatch import Implementation, register
from lavit.kernels.gumbel_select import reference

OPERATION = register("gumbel_select", Implementation("reference", "the definition in PyTorch"))

SCHEMA = (
    "(Tensor scores, Tensor? noise, Tensor? seeds, float tau, int min_keep, str impl)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("lavit::gumbel_select", mutates_args=(), schema=SCHEMA)
def gumbel_select_op(scores, noise, seeds, tau, min_keep, impl):
    OPERATION.choose(impl, scores.device)
    return reference.gumbel_select(scores, noise, seeds, tau, min_keep)


@gumbel_select_op.register_fake
def _(scores, noise, seeds, tau, min_keep, impl):
    batch, num_patches, _ = scores.shape
    rows = scores.new_empty((batch, num_patches))
    order = scores.new_empty((batch, num_patches), dtype=torch.int32)
    cu = scores.new_empty((batch + 1,), dtype=torch.int32)
    return rows, torch.empty_like(rows), order, cu, torch.empty_like(cu)


def _setup(ctx, inputs, output):
    _, _, _, ctx.tau, _, _ = inputs
    _, prob, order, cu_kept, cu_dropped = output
    ctx.save_for_backward(prob)
    ctx.mark_non_differentiable(order, cu_kept, cu_dropped)


def _backward(ctx, grad_keep: Tensor, grad_prob: Tensor, *_):
    (prob,) = ctx.saved_tensors
    return reference.gumbel_select_backward(grad_keep, grad_prob, prob, ctx.tau), None, None, None, None, None


gumbel_select_op.register_autograd(_backward, setup_context=_setup)
