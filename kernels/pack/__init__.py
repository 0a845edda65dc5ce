"""Rows of a dense batch to a packed one and back."""

from __future__ import annotations

from torch import Tensor

from lavit.kernels.checks import as_fill, check_offsets, check_order, check_total, shape
from lavit.kernels.pack.library import pack_op, unpack_op

__all__ = ["pack", "unpack"]


def pack(
    x: Tensor, order: Tensor, cu: Tensor, *, total: int | None = None, dropped: bool = False, impl: str = "auto"
) -> Tensor:
    """Gather the chosen rows of every image, one image after the other.

    x: (B, N, ...) of any dtype. order: (B, N) int32, a permutation of 0..N-1 per image. cu: (B + 1,) int32 offsets.
    Image b gives its rows ``order[b, :n]`` with n = cu[b + 1] - cu[b], or with ``dropped`` the last n entries.
    total: an upper bound T of cu[-1], then the host waits for nothing and rows from cu[-1] on are zero; None: T is
    cu[-1] itself, at the price of one synchronisation.
    Returns (T, ...). The gradient with respect to x is ``unpack`` of the result's gradient.
    Raises TypeError for offsets or indices that are not int32, ValueError for shapes or devices that do not fit, and on
    the CPU (elsewhere under LAVIT_DEBUG=1) for an order that is no permutation, offsets that do not begin at 0, that
    fall, that give an image more than N rows or end beyond ``total``.
    """
    check_order(order, x.device)
    if shape(x)[:2] != shape(order):
        raise ValueError(f"x: expected shape {(*shape(order), '...')} to match order, got {shape(x)}")
    check_offsets("cu", cu, x.device, order.shape[0])
    check_total(total)
    return pack_op(x, order, cu, total, dropped, impl)


def unpack(
    values: Tensor,
    order: Tensor,
    cu: Tensor,
    num_patches: int,
    *,
    fill: float = 0.0,
    dropped: bool = False,
    impl: str = "auto",
) -> Tensor:
    """The inverse of ``pack``: every packed row goes back to its place, the other places hold ``fill``.

    values: (T, ...) of any dtype. order: (B, N) int32, a permutation per image. cu: (B + 1,) int32 offsets.
    num_patches: N, for the check that the order belongs to it. fill: a number, converted to the dtype of values.
    Returns (B, N, ...). The gradient with respect to values is ``pack`` of the result's gradient.
    Raises as ``pack`` does; the offsets end within T.
    """
    check_order(order, values.device)
    if order.shape[1] != num_patches:
        raise ValueError(f"num_patches: expected {order.shape[1]} to match order {shape(order)}, got {num_patches}")
    if values.dim() < 1:
        raise ValueError("values: expected shape (T, ...), got a scalar")
    check_offsets("cu", cu, values.device, order.shape[0])
    return unpack_op(values, order, cu, as_fill("fill", fill, values.dtype), dropped, impl)
