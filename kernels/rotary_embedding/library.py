"""Registration of lavit::rotary_embedding, whose gradient is the same operation with ``back``: the transposed."""

from __future__ import annotations

import torch

from lavit.kernels.dispatch import Implementation, direct, register, without_autocast
from lavit.kernels.rotary_embedding import cpp

OPERATION = register(
    "rotary_embedding",
    Implementation("cpp", "one compiled pass", cpp.unusable),
    Implementation("reference", "the definition in PyTorch"),
)


@without_autocast
def compute(x, cos, sin, back, impl):
    return OPERATION.module(impl, x).rotary_embedding(x, cos, sin, back)


rotary_embedding_op = torch.library.custom_op(
    "lavit::rotary_embedding",
    compute,
    mutates_args=(),
    schema="(Tensor x, Tensor cos, Tensor sin, bool back, str impl) -> Tensor",
)


@rotary_embedding_op.register_fake
def _(x, cos, sin, back, impl):
    return x.new_empty(x.shape)


def _setup(ctx, inputs, output):
    _, cos, sin, ctx.back, ctx.form = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx, grad):
    return rotary_embedding_op(grad, *ctx.saved_tensors, not ctx.back, ctx.form), None, None, None, None


rotary_embedding_op.register_autograd(_backward, setup_context=_setup)


class _Direct(torch.autograd.Function):
    """The operator past its registration, by an implementation that is chosen once for both directions."""

    @staticmethod
    def forward(ctx, *inputs):
        _setup(ctx, inputs, None)
        *tensors, back, form = inputs
        return form.rotary_embedding(*tensors, back)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return ctx.form.rotary_embedding(grad, *ctx.saved_tensors, not ctx.back), None, None, None, None


_apply = without_autocast(_Direct.apply)


def rotated(x, cos, sin, impl):
    """The operator, past its registration where nobody looks at it."""
    if direct(x, cos, sin):
        return compute(x, cos, sin, False, impl)
    if direct(x, cos, sin, gradient=True):
        return _apply(x, cos, sin, False, OPERATION.module(impl, x))
    return rotary_embedding_op(x, cos, sin, False, impl)
