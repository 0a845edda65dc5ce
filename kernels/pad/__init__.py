"""A ragged batch to a padded one and back."""

from __future__ import annotations

from torch import Tensor

from lavit.kernels.checks import as_fill, check_offsets, check_total, shape
from lavit.kernels.pad.library import pad_op, unpad_op
from lavit.kernels.types import Ragged

__all__ = ["pad", "unpad"]


def _left(side: str) -> bool:
    if side not in ("left", "right"):
        raise ValueError(f"side: expected 'left' or 'right', got {side!r}")
    return side == "left"


def pad(
    ragged: Ragged, length: int | None = None, *, side: str = "right", value: float = 0, impl: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Lay the sequences out side by side, all of one length.

    ragged: values (T, ...) of any dtype. length: L, of a longer sequence the first L rows are used; None: it is
    ``ragged.max_seqlen``, which no sequence exceeds. side: where the padding goes ("left": sequences end together, as
    generation needs). value: what the padding holds, converted to the dtype of the values.
    Returns ``padded`` (B, L, ...), ``mask`` (B, L) bool, true at real rows, and ``position_ids`` (B, L) int64: the
    rank of a row in its sequence, 0 at the padding. The gradient with respect to the values is ``unpad``.
    Raises TypeError and ValueError for dtypes, shapes and devices that do not fit, and on the CPU (elsewhere under
    LAVIT_DEBUG=1) ValueError for offsets that do not begin at 0, that fall, end beyond T or exceed ``max_seqlen``.
    """
    left = _left(side)
    cut = length is not None
    length = ragged.max_seqlen if length is None else length
    if length < 0:
        raise ValueError(f"length: expected >= 0, got {length}")
    check_offsets("ragged.cu_seqlens", ragged.cu_seqlens, ragged.values.device)
    value = as_fill("value", value, ragged.values.dtype)
    return pad_op(ragged.values, ragged.cu_seqlens, length, cut, left, value, impl)


def unpad(
    padded: Tensor, cu_seqlens: Tensor, *, side: str = "right", total: int | None = None, impl: str = "auto"
) -> Tensor:
    """The inverse of ``pad``: (B, L, ...) and offsets (B + 1,) int32 -> (T, ...).

    side: where the padding is. total: an upper bound T of cu_seqlens[-1] (no synchronisation; rows from
    cu_seqlens[-1] on are zero), None: T is cu_seqlens[-1], at the price of one synchronisation. Rows of a sequence
    beyond L, which ``pad`` had cut, are zero. The gradient with respect to ``padded`` is ``pad`` with zeros.
    Raises as ``pad`` does; the offsets end within ``total``.
    """
    left = _left(side)
    if padded.dim() < 2:
        raise ValueError(f"padded: expected shape (B, L, ...), got {shape(padded)}")
    check_offsets("cu_seqlens", cu_seqlens, padded.device, padded.shape[0])
    check_total(total)
    return unpad_op(padded, cu_seqlens, left, total, impl)
