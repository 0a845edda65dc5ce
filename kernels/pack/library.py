"""Registration of ``lavit::pack`` and ``lavit::unpack``, each the gradient of the other."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.checks import verify_packing
from lavit.kernels.dispatch import Implementation, register
from lavit.kernels.extension import cpp_unusable

CPP = Implementation("cpp", "one compiled pass, rows moved as bytes", cpp_unusable)
REFERENCE = Implementation("reference", "plain PyTorch: index arithmetic and gather")
PACK = register("pack", CPP, REFERENCE)
UNPACK = register("unpack", CPP, REFERENCE, folder="pack")


@torch.library.custom_op("lavit::pack", mutates_args=())
def pack_op(x: Tensor, order: Tensor, cu: Tensor, total: int | None, dropped: bool, impl: str) -> Tensor:
    end = verify_packing(order, cu, total)
    rows = total if total is not None else int(cu[-1]) if end is None else end
    return PACK.module(impl, x).pack(x, order, cu, rows, dropped)


@pack_op.register_fake
def _(x: Tensor, order: Tensor, cu: Tensor, total: int | None, dropped: bool, impl: str) -> Tensor:
    rows = torch.library.get_ctx().new_dynamic_size() if total is None else total
    return x.new_empty((rows, *x.shape[2:]))


def _pack_context(ctx, inputs, output) -> None:
    _, order, cu, _, ctx.dropped, ctx.impl = inputs
    ctx.save_for_backward(order, cu)


def _pack_backward(ctx, grad: Tensor):
    order, cu = ctx.saved_tensors
    return unpack_op(grad, order, cu, 0.0, ctx.dropped, ctx.impl), None, None, None, None, None


pack_op.register_autograd(_pack_backward, setup_context=_pack_context)


@torch.library.custom_op("lavit::unpack", mutates_args=())
def unpack_op(values: Tensor, order: Tensor, cu: Tensor, fill: float, dropped: bool, impl: str) -> Tensor:
    verify_packing(order, cu, values.shape[0])
    return UNPACK.module(impl, values).unpack(values, order, cu, fill, dropped)


@unpack_op.register_fake
def _(values: Tensor, order: Tensor, cu: Tensor, fill: float, dropped: bool, impl: str) -> Tensor:
    return values.new_empty((*order.shape, *values.shape[1:]))


def _unpack_context(ctx, inputs, output) -> None:
    values, order, cu, _, ctx.dropped, ctx.impl = inputs
    ctx.total = values.shape[0]
    ctx.save_for_backward(order, cu)


def _unpack_backward(ctx, grad: Tensor):
    order, cu = ctx.saved_tensors
    return pack_op(grad, order, cu, ctx.total, ctx.dropped, ctx.impl), None, None, None, None, None


unpack_op.register_autograd(_unpack_backward, setup_context=_unpack_context)
