"""What the kernels of triton_kernels.py share: lengths of rows at any magnitude, float16 copies, exact scores."""

from __future__ import annotations

import triton
import triton.language as tl

LOW = tl.constexpr(-3.0e38)
NO_ID = tl.constexpr(2**31 - 1)


@triton.jit
def power_for(largest):
    """The power of two, with a reciprocal, that brings numbers of at most this magnitude to at most 2, and 4 at the
    top of the range. Denormals stay below 1: with float32's 2^126 they come to 2^-23 at least."""
    if largest.dtype == tl.float64:
        exponent = largest.to(tl.int64, bitcast=True) & (0x7FF << 52)
        bits = tl.minimum(tl.maximum((2046 << 52) - exponent, 1 << 52), 2045 << 52)
        return bits.to(tl.float64, bitcast=True)
    else:
        exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
        bits = tl.minimum(tl.maximum((254 << 23) - exponent, 1 << 23), 253 << 23)
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def reciprocal(power):
    """1 / power, exactly, of what ``power_for`` gives."""
    if power.dtype == tl.float64:
        return ((2046 << 52) - power.to(tl.int64, bitcast=True)).to(tl.float64, bitcast=True)
    else:
        return ((254 << 23) - power.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def _columns(x_ptr, rows, wanted, first, D: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr):
    """BLOCK_D columns of rows of x, from ``first``; zero beyond D and where a row is not wanted."""
    d = first + tl.arange(0, BLOCK_D)
    at = x_ptr + rows[:, None] * D + d[None, :]
    return tl.load(at, mask=wanted[:, None] & (d < D)[None, :], other=0.0).to(ACC)


@triton.jit
def _not_finite(x):
    return (~(tl.abs(x) < float("inf"))).to(tl.int32)


@triton.jit
def magnitude_of_rows(
    x_ptr, rows, inside, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr
):
    """The largest entry of each row without its sign, and whether all of the row is finite."""
    largest = tl.zeros((ROWS,), ACC)
    bad = tl.zeros((ROWS,), tl.int32)
    for first in range(0, D, BLOCK_D):
        x = _columns(x_ptr, rows, inside, first, D, BLOCK_D, ACC)
        bad += tl.sum(_not_finite(x), axis=1)
        largest = tl.maximum(largest, tl.max(tl.abs(x), axis=1))
    return largest, bad == 0


@triton.jit
def inverse_length(
    x_ptr, rows, inside, power, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr
):
    """1 / |power x|, 0 for a zero row, and |power x|^2."""
    square = tl.zeros((ROWS,), ACC)
    for first in range(0, D, BLOCK_D):
        x = _columns(x_ptr, rows, inside, first, D, BLOCK_D, ACC) * power[:, None]
        square += tl.sum(x * x, axis=1)
    return tl.where(square > 0, 1.0 / tl.sqrt(tl.where(square > 0, square, 1.0)), 0.0), square


@triton.jit
def half_rows(x_ptr, rows, wanted, power, inverse, first, D: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr):
    """xh, r x' - xh and r x' for columns first.. of rows of x, with r x' = (power x) inverse; zero where not wanted.

    Two factors, since their product may be beyond the range of either.
    """
    x = _columns(x_ptr, rows, wanted, first, D, BLOCK_D, ACC)
    scaled = ((x * power[:, None]) * inverse[:, None]).to(tl.float32)
    half = scaled.to(tl.float16)
    return half, scaled - half.to(tl.float32), scaled


@triton.jit
def owned_rows(
    x_ptr, range_ptr, n, D: tl.constexpr, BLOCK_D: tl.constexpr, COSINE: tl.constexpr, NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The rows of a program: which there are, which are finite, r x' = (scale x) inverse, and |r x'|^2.

    Euclidean scores are computed of r x' and t c. r brings a row below 2, but not the least code above 2^51, so that
    one code at least has a square; beside such codes a row is nothing. t is r, or for rows far above the codebook what
    brings that near 1.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    magnitude, finite = magnitude_of_rows(x_ptr, rows, inside, D, BLOCK_D, ROWS, ACC)
    scale = power_for(magnitude)
    r = tl.full((ROWS,), 1.0, ACC)
    t = r
    if not COSINE:
        if not NORMALIZE:
            scale = tl.minimum(scale, tl.load(range_ptr + 1))
            r = scale
        else:
            r = tl.minimum(tl.where(magnitude > 0, 1.0, scale), tl.load(range_ptr + 1))
        t = tl.maximum(r, tl.load(range_ptr))
    inverse, square = inverse_length(x_ptr, rows, inside, scale, D, BLOCK_D, ROWS, ACC)
    if NORMALIZE:
        inverse = inverse * r
    else:
        inverse = tl.full((ROWS,), 1.0, ACC)
    return rows, inside, finite, scale, inverse, r, t, square * inverse * inverse


@triton.jit
def _codes(c_ptr, codes, known, first, D: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr):
    d = first + tl.arange(0, BLOCK_D)
    at = c_ptr + codes.to(tl.int64)[:, :, None] * D + d[None, None, :]
    return tl.load(at, mask=known[:, :, None] & (d < D)[None, None, :], other=0.0).to(ACC)


@triton.jit
def score_codes(
    x_ptr, c_ptr, rows, wanted, codes, scale, inverse, r, t, num_codes,
    D: tl.constexpr, BLOCK_D: tl.constexpr, COSINE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Scores of rows (R,) with codes (R or 1, E): (scale x).c / |c|, or r t (x'.c - |c|^2 / 2).

    A code that is not finite, or out of range, gets -inf, and so does one beyond the range of r t |c|^2, which lies far
    behind others. Every score is summed in the same order wherever it is computed, so that equal codes tie.
    """
    product = (rows[:, None] + codes).to(ACC) * 0.0
    bad = codes * 0
    known = codes < num_codes
    if COSINE:
        square = codes.to(ACC) * 0.0
        factor = square
        if D > BLOCK_D:
            for first in range(0, D, BLOCK_D):
                factor = tl.maximum(factor, tl.max(tl.abs(_codes(c_ptr, codes, known, first, D, BLOCK_D, ACC)), axis=2))
            factor = power_for(factor)
    else:
        square = product
        factor = t[:, None]
    for first in range(0, D, BLOCK_D):
        x = _columns(x_ptr, rows, wanted, first, D, BLOCK_D, ACC) * scale[:, None]
        c = _codes(c_ptr, codes, known, first, D, BLOCK_D, ACC)
        bad += tl.sum(_not_finite(c), axis=2)
        if COSINE and D <= BLOCK_D:
            factor = power_for(tl.max(tl.abs(c), axis=2))
        c = c * factor[:, :, None]
        product += tl.sum(x[:, None, :] * c, axis=2)
        square += tl.sum(c * c, axis=2)
    if COSINE:
        score = product / tl.sqrt(tl.where(square > 0, square, 1.0))
    else:
        score = product * inverse[:, None] - (r * reciprocal(t))[:, None] * (0.5 * square)
    return tl.where(known & (bad == 0) & (score == score), score, float("-inf"))


@triton.jit
def take_better(best, best_id, scores, codes, live):
    """The running best of each row and its id, the lowest among equals."""
    top = tl.max(scores, axis=1)
    at_top = tl.where(scores == top[:, None], codes, NO_ID)
    lowest = tl.min(at_top, axis=1)
    better = live & ((top > best) | ((top == best) & (lowest < best_id) & (top > float("-inf"))))
    return tl.where(better, top, best), tl.where(better, lowest, best_id)


@triton.jit
def finish(ids_ptr, score_ptr, rows, inside, best, best_id, square, inverse, r, t, found, COSINE: tl.constexpr):
    """Cosine similarity or squared distance; -1 and NaN where nothing was found."""
    if COSINE:
        score = best * inverse
    else:
        back = reciprocal(r)
        score = tl.maximum(square - 2.0 * best * (r * reciprocal(t)), 0.0) * back * back
    tl.store(ids_ptr + rows, tl.where(found, best_id, -1).to(tl.int64), mask=inside)
    tl.store(score_ptr + rows, tl.where(found, score, float("nan")).to(tl.float32), mask=inside)
