"""Registration of lavit::add_rms_norm and its backward."""

from __future__ import annotations

import torch

from lavit.kernels.add_rms_norm import cpp
from lavit.kernels.dispatch import Implementation, direct, register, without_autocast

OPERATION = register(
    "add_rms_norm",
    Implementation("cpp", "sum and norm in one compiled pass", cpp.unusable),
    Implementation("reference", "PyTorch's sum and norm"),
)


def _forward(form, x, delta, weight, eps):
    delta = None if delta is None else delta.contiguous()
    return form.add_rms_norm(x.contiguous(), delta, weight.contiguous(), eps)


@without_autocast
def compute(x, delta, weight, eps, impl):
    return _forward(OPERATION.module(impl, x), x, delta, weight, eps)


@without_autocast
def gradients(total, grad_total, grad_normed, weight, eps, impl):
    return OPERATION.module(impl, total).add_rms_norm_backward(total, grad_total, grad_normed, weight, eps)


add_rms_norm_op = torch.library.custom_op(
    "lavit::add_rms_norm",
    compute,
    mutates_args=(),
    schema="(Tensor x, Tensor? delta, Tensor weight, float eps, str impl) -> (Tensor, Tensor)",
)
add_rms_norm_backward_op = torch.library.custom_op(
    "lavit::add_rms_norm_backward",
    gradients,
    mutates_args=(),
    schema="(Tensor total, Tensor? grad_total, Tensor grad_normed, Tensor weight, float eps, str impl)"
    " -> (Tensor, Tensor)",
)


@add_rms_norm_op.register_fake
def _(x, delta, weight, eps, impl):
    return x.new_empty(x.shape), x.new_empty(x.shape)


@add_rms_norm_backward_op.register_fake
def _(total, grad_total, grad_normed, weight, eps, impl):
    return total.new_empty(total.shape), weight.new_empty(weight.shape)


def _setup(ctx, inputs, output):
    _, delta, weight, ctx.eps, ctx.form = inputs
    ctx.has_delta = delta is not None
    ctx.save_for_backward(output[0], weight)
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad_total, grad_normed, run, *form):
    """Of the five inputs; where the norm is not used, that of the sum alone."""
    total, weight = ctx.saved_tensors
    ds, dw = grad_total, None
    if grad_normed is not None:
        ds, dw = run(total, grad_total, grad_normed, weight, ctx.eps, *form)
    return ds, ds if ctx.has_delta else None, dw, None, None


def _backward(ctx, grad_total, grad_normed):
    return _gradients(ctx, grad_total, grad_normed, add_rms_norm_backward_op, ctx.form)


add_rms_norm_op.register_autograd(_backward, setup_context=_setup)


class _Direct(torch.autograd.Function):
    """The operator past its registration, by an implementation that is chosen once for both directions."""

    @staticmethod
    def forward(ctx, *inputs):
        *arguments, form = inputs
        output = _forward(form, *arguments)
        _setup(ctx, inputs, output)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total, grad_normed):
        return _gradients(ctx, grad_total, grad_normed, ctx.form.add_rms_norm_backward)


_apply = without_autocast(_Direct.apply)


def add_norm(x, delta, weight, eps, impl):
    """The operator, past its registration where nobody looks at it."""
    if direct(x, delta, weight):
        return compute(x, delta, weight, eps, impl)
    if direct(x, delta, weight, gradient=True):
        return _apply(x, delta, weight, eps, OPERATION.module(impl, x))
    return add_rms_norm_op(x, delta, weight, eps, impl)
