"""The stable partition of each image's patches into kept and dropped ones."""

from __future__ import annotations

from torch import Tensor

from lavit.kernels.checks import INT32_MAX, shape
from lavit.kernels.partition.library import partition_op

__all__ = ["partition"]


def partition(keep: Tensor, *, impl: str = "auto") -> tuple[Tensor, Tensor, Tensor]:
    """Order each image's patches: kept ones in raster order, then dropped ones in raster order.

    keep: (B, N), bool, integer or floating; a patch is kept where it is not zero (NaN is not zero). No gradient.
    Returns ``order`` (B, N) int32, ``cu_kept`` (B + 1,) int32 and ``cu_dropped`` (B + 1,) int32: image b's kept
    patches are ``order[b, :n]`` with n = cu_kept[b + 1] - cu_kept[b], its dropped ones the rest.
    Raises ValueError for another number of dimensions or more than 2**31 - 1 patches.
    """
    if keep.dim() != 2:
        raise ValueError(f"keep: expected shape (B, N), got {shape(keep)}")
    if keep.is_complex():
        raise TypeError(f"keep: expected a bool, integer or floating mask, got {keep.dtype}")
    if keep.numel() > INT32_MAX:
        raise ValueError(f"keep: expected at most {INT32_MAX} patches in all, got {keep.numel()}")
    return partition_op(keep, impl)
