"""Registration of ``lavit::pad`` and ``lavit::unpad``, each the gradient of the other."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.checks import verify_offsets
from lavit.kernels.dispatch import Implementation, register
from lavit.kernels.extension import cpp_unusable

CPP = Implementation("cpp", "one compiled pass, rows moved as bytes", cpp_unusable)
REFERENCE = Implementation("reference", "plain PyTorch: index arithmetic and gather")
PAD = register("pad", CPP, REFERENCE)
UNPAD = register("unpad", CPP, REFERENCE, folder="pad")


@torch.library.custom_op("lavit::pad", mutates_args=())
def pad_op(
    values: Tensor, cu: Tensor, length: int, cut: bool, left: bool, value: float, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    """cut: whether a sequence may be longer than ``length``."""
    longest = None if cut else length
    verify_offsets("ragged.cu_seqlens", cu, total=values.shape[0], longest=longest, bound="ragged.max_seqlen")
    return PAD.module(impl, values).pad(values, cu, length, left, value)


@pad_op.register_fake
def _(
    values: Tensor, cu: Tensor, length: int, cut: bool, left: bool, value: float, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    layout = (cu.shape[0] - 1, length)
    return (
        values.new_empty((*layout, *values.shape[1:])),
        values.new_empty(layout, dtype=torch.bool),
        values.new_empty(layout, dtype=torch.int64),
    )


def _pad_context(ctx, inputs, output) -> None:
    values, cu, _, _, ctx.left, _, ctx.impl = inputs
    ctx.total = values.shape[0]
    ctx.save_for_backward(cu)
    ctx.mark_non_differentiable(*output[1:])


def _pad_backward(ctx, grad: Tensor, *_):
    (cu,) = ctx.saved_tensors
    return unpad_op(grad, cu, ctx.left, ctx.total, ctx.impl), None, None, None, None, None, None


pad_op.register_autograd(_pad_backward, setup_context=_pad_context)


@torch.library.custom_op("lavit::unpad", mutates_args=())
def unpad_op(padded: Tensor, cu: Tensor, left: bool, total: int | None, impl: str) -> Tensor:
    end = verify_offsets("cu_seqlens", cu, total=total)
    rows = total if total is not None else int(cu[-1]) if end is None else end
    return UNPAD.module(impl, padded).unpad(padded, cu, left, rows)


@unpad_op.register_fake
def _(padded: Tensor, cu: Tensor, left: bool, total: int | None, impl: str) -> Tensor:
    rows = torch.library.get_ctx().new_dynamic_size() if total is None else total
    return padded.new_empty((rows, *padded.shape[2:]))


def _unpad_context(ctx, inputs, output) -> None:
    padded, cu, ctx.left, _, ctx.impl = inputs
    ctx.length = padded.shape[1]
    ctx.save_for_backward(cu)


def _unpad_backward(ctx, grad: Tensor):
    (cu,) = ctx.saved_tensors
    return pad_op(grad, cu, ctx.length, True, ctx.left, 0.0, ctx.impl)[0], None, None, None, None


unpad_op.register_autograd(_unpad_backward, setup_context=_unpad_context)
