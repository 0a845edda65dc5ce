"""What the codebook's moving average needs of a batch: use and sum of vectors per code."""

from __future__ import annotations

from torch import Tensor

from lavit.kernels.checks import check_float, check_int64, check_same_device, check_shape
from lavit.kernels.code_statistics.library import code_statistics_op

__all__ = ["code_statistics"]


def code_statistics(x: Tensor, ids: Tensor, num_codes: int, *, impl: str = "auto") -> tuple[Tensor, Tensor]:
    """counts_k = #{i: ids_i = k}, sums_k = sum of x_i over ids_i = k.

    x: (n, D) floating. ids: (n,) int64 in [-1, num_codes); -1 is ignored. num_codes: K >= 1.

    Returns counts (K,) and sums (K, D), both float32 (float64 when x is float64). Deterministic: the same bits every
    run, no atomics. No gradient. Raises ValueError or TypeError on a wrong shape, dtype, device or K, and on the CPU
    (elsewhere under LAVIT_DEBUG=1) for ids out of range.
    """
    check_float("x", x, "(n, D)")
    check_int64("ids", ids)
    check_shape("ids", ids, x.shape[:1], "x")
    check_same_device("ids", ids, "x", x)
    if num_codes < 1:
        raise ValueError(f"num_codes: expected at least 1, got {num_codes}")
    return code_statistics_op(x.detach(), ids, num_codes, impl)
