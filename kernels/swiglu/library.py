"""Registration of lavit::swiglu and its backward."""

from __future__ import annotations

import torch

from lavit.kernels.dispatch import Implementation, direct, register, without_autocast
from lavit.kernels.swiglu import cpp

OPERATION = register(
    "swiglu",
    Implementation("cpp", "one compiled pass, for float32", cpp.unusable),
    Implementation("reference", "PyTorch's SiLU and a product"),
)


@without_autocast
def compute(gate, up, impl):
    return OPERATION.module(impl, gate).swiglu(gate, up)


@without_autocast
def gradients(grad, gate, up, impl):
    return OPERATION.module(impl, gate).swiglu_backward(grad, gate, up)


swiglu_op = torch.library.custom_op(
    "lavit::swiglu", compute, mutates_args=(), schema="(Tensor gate, Tensor up, str impl) -> Tensor"
)
swiglu_backward_op = torch.library.custom_op(
    "lavit::swiglu_backward",
    gradients,
    mutates_args=(),
    schema="(Tensor grad, Tensor gate, Tensor up, str impl) -> (Tensor, Tensor)",
)


@swiglu_op.register_fake
def _(gate, up, impl):
    return gate.new_empty(gate.shape)


@swiglu_backward_op.register_fake
def _(grad, gate, up, impl):
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _setup(ctx, inputs, output):
    gate, up, ctx.form = inputs
    ctx.save_for_backward(gate, up)


def _backward(ctx, grad):
    return *swiglu_backward_op(grad, *ctx.saved_tensors, ctx.form), None


swiglu_op.register_autograd(_backward, setup_context=_setup)


class _Direct(torch.autograd.Function):
    """The operator past its registration, by an implementation that is chosen once for both directions."""

    @staticmethod
    def forward(ctx, *inputs):
        _setup(ctx, inputs, None)
        gate, up, form = inputs
        return form.swiglu(gate, up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return *ctx.form.swiglu_backward(grad, *ctx.saved_tensors), None


_apply = without_autocast(_Direct.apply)


def gated(gate, up, impl):
    """The operator, past its registration where nobody looks at it."""
    if direct(gate, up):
        return compute(gate, up, impl)
    if direct(gate, up, gradient=True):
        return _apply(gate, up, OPERATION.module(impl, gate))
    return swiglu_op(gate, up, impl)
