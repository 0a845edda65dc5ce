"""Sorted by code, then one launch: every program finds its code's rows and adds them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lavit.kernels.checks import INT32_MAX
from lavit.kernels.triton_support import Variant, on_device_of, variant
from lavit.kernels.types import compute_dtype

# Columns of a program, the next power of two of D at most, to the rows that it adds at a time and its warps. Most codes
# have a row or none, and then warps are what the machine has too few of; a code that has all the rows wants many.
TILES = {16: (128, 2), 32: (64, 2), 64: (32, 2), 128: (32, 4), 256: (16, 4)}


# x and the order once (4 D + 16 bytes a row), the sums out (4 D bytes a code): at n = 65536, K = 16384, D = 32 that is
# 12 MB, 4 us of an H100's memory. The limit is latency: a code waits for log2 n loads, one after the other, then for
# its rows. Where all rows are of one code, one program adds them, n / rows steps of two waits.
@triton.jit(do_not_specialize=["num_rows", "stride"])
def _segment_sums(
    sorted_ids, order, x, counts, sums, num_rows, stride, dim, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """A program owns one code and a block of columns: its sums, and with the first block its count."""
    code = tl.program_id(0).to(tl.int64)
    # How many sorted ids are below code, and below code + 1: both searches go on side by side.
    first = tl.full([], 0, tl.int64)
    end = tl.full([], 0, tl.int64)
    step = first + stride
    while step > 0:
        below = tl.load(sorted_ids + first + step - 1, mask=first + step <= num_rows, other=code) < code
        within = tl.load(sorted_ids + end + step - 1, mask=end + step <= num_rows, other=code + 1) < code + 1
        first += tl.where(below, step, 0)
        end += tl.where(within, step, 0)
        step = step >> 1
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    precision: tl.constexpr = sums.dtype.element_ty
    total = tl.zeros([ROWS, COLUMNS], precision)
    start = first
    while start < end:
        place = start + tl.arange(0, ROWS)
        row = tl.load(order + place, mask=place < end, other=0)
        wanted = (place < end)[:, None] & (column < dim)[None, :]
        total += tl.load(x + row[:, None] * dim + column[None, :], mask=wanted, other=0.0).to(precision)
        start += ROWS
    tl.store(sums + code * dim + column, tl.sum(total, axis=0), mask=column < dim)
    if tl.program_id(1) == 0:
        tl.store(counts + code, (end - first).to(precision))


def code_statistics(x: Tensor, ids: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """As the reference; the rows of a code are added in an order that their number alone decides."""
    num_rows, dim = x.shape
    counts = x.new_empty((num_codes,), dtype=compute_dtype(x))
    sums = x.new_empty((num_codes, dim), dtype=compute_dtype(x))
    # A radix sort of half the bytes, half the work.
    keys = ids.to(torch.int32) if num_codes <= INT32_MAX else ids
    sorted_ids, order = keys.sort(stable=True)
    columns = min(max(TILES), max(min(TILES), triton.next_power_of_2(dim)))
    rows, warps = TILES[columns]
    stride = 1 << (num_rows.bit_length() - 1) if num_rows else 0
    with on_device_of(x):
        _segment_sums[(num_codes, max(1, triton.cdiv(dim, columns)))](
            sorted_ids, order, x.contiguous(), counts, sums, num_rows, stride, dim, rows, columns, num_warps=warps
        )
    return counts, sums


def variants(every: bool = False) -> list[Variant]:
    """Every tile in float32, bfloat16 and float64. every: in float16 too, and widths that are no multiple of 16."""
    out = []
    for columns, (rows, warps) in TILES.items():
        for dtype in ("fp32", "bf16", "fp64", *(("fp16",) if every else ())):
            precision = "fp64" if dtype == "fp64" else "fp32"
            types = {"sorted_ids": "*i32", "order": "*i64", "x": f"*{dtype}"}
            types |= {"counts": f"*{precision}", "sums": f"*{precision}"}
            constants, label = {"ROWS": rows, "COLUMNS": columns}, f"{dtype} {rows}x{columns}"
            for divisible in ((("dim",), ()) if every else (("dim",),)):
                name = label if divisible else f"{label} any width"
                out.append(variant(_segment_sums, name, types, constants, divisible=divisible, num_warps=warps))
    return out
