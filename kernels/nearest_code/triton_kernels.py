"""Nearest code on tensor cores: a half-precision pass that keeps block maxima, a proven bound, an exact rescoring.

The screening pass computes every score from float16 copies, at 64 operations a score for D = 32, and keeps of each row
only the two largest block maxima and the value of the third, for every lane of codes. A block is one lane of one tile:
with tiles of 128 codes and 4 lanes, 32 codes. Its maximum carries at most the error E of ``_window``; a block whose
maximum lies 2 E below the row's largest cannot hold the nearest code. The few others, nearly always one, are computed
again from the vectors as they were given, in float32 (float64 for float64). When three blocks of a lane lie within the
bound, the lane's whole share of the codebook is. The result is that of an exhaustive search in the same precision.

With x' = x or x/|x|, c' = c or c/|c|, powers of two r (of a row) and g (of the codebook) that bring both into
float16's range, and xh, ch the float16 copies of r x', g c':
    |r g x'.c' - xh.ch| <= |r x' - xh| |g c'| + |xh| |g c' - ch|        (Cauchy-Schwarz; the residuals as they are)
                           + D 2^-22 |xh| |ch|                         (sums in float32, truncated at each addend)
A power of two also comes before every square, so that vectors of any magnitude have a length.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lavit.kernels.nearest_code.triton_parts import (
    LOW,
    NO_ID,
    finish,
    half_rows,
    inverse_length,
    magnitude_of_rows,
    owned_rows,
    power_for,
    reciprocal,
    score_codes,
    take_better,
)


@triton.jit(do_not_specialize=["num_codes", "rows_per_program"])
def ends_kernel(
    c_ptr, ends_ptr, num_codes, rows_per_program,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, PROGRAMS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """ends (2, PROGRAMS): of each program the largest entry of its finite codes, and of the least one that is not zero.

    A code's magnitude is that of its largest entry.
    """
    program = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((ROWS,), ACC)
    least = tl.full((ROWS,), float("inf"), ACC)
    for start in range(0, rows_per_program, ROWS):
        rows = program * rows_per_program + start + tl.arange(0, ROWS)
        inside = (rows < num_codes) & (start + tl.arange(0, ROWS) < rows_per_program)
        magnitude, finite = magnitude_of_rows(c_ptr, rows, inside, D, BLOCK_D, ROWS, ACC)
        largest = tl.maximum(largest, tl.where(finite, magnitude, 0.0))
        least = tl.minimum(least, tl.where(finite & (magnitude > 0), magnitude, float("inf")))
    tl.store(ends_ptr + program, tl.max(largest, axis=0))
    tl.store(ends_ptr + PROGRAMS + program, tl.min(least, axis=0))


@triton.jit(do_not_specialize=["num_codes", "padded_codes", "rows_per_program"])
def prepare_kernel(
    c_ptr, half_ptr, bias_ptr, ends_ptr, range_ptr, stats_ptr, first_ptr, num_codes, padded_codes, rows_per_program,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, COSINE: tl.constexpr, ROWS: tl.constexpr,
    PROGRAMS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """float16 copies of a share of the codes, scaled by g: K (4 D + 2 WIDTH) bytes, once a call.

    Codes that are not finite, and the rows that fill the last tile, become NaN: the screening's maximum passes them
    over. bias (padded_codes,): -|g c|^2 / 2. range (2,): g, and the largest r that ``owned_rows`` may choose.
    stats (3, PROGRAMS): the largest |g c'|, |g c' - ch| and |g c|^2 / 2 of each program. first (PROGRAMS,): its first
    code that is finite.
    """
    program = tl.program_id(0).to(tl.int64)
    if not COSINE:
        p = tl.arange(0, PROGRAMS)
        there = p < tl.num_programs(0)
        g = power_for(tl.max(tl.load(ends_ptr + p, mask=there, other=0.0), axis=0))
        if program == 0:
            least = tl.min(tl.load(ends_ptr + PROGRAMS + p, mask=there, other=float("inf")), axis=0)
            tl.store(range_ptr, g)
            tl.store(range_ptr + 1, tl.where(least < float("inf"), power_for(least) * 2.0**50, 1.0))
    most_norm = tl.zeros((ROWS,), tl.float32)
    most_residual = tl.zeros((ROWS,), tl.float32)
    most_bias = tl.zeros((ROWS,), tl.float32)
    lowest = tl.full((ROWS,), NO_ID, tl.int32)
    for start in range(0, rows_per_program, ROWS):
        rows = program * rows_per_program + start + tl.arange(0, ROWS)
        mine = (rows < padded_codes) & (start + tl.arange(0, ROWS) < rows_per_program)
        known = rows < num_codes
        magnitude, finite = magnitude_of_rows(c_ptr, rows, known, D, BLOCK_D, ROWS, ACC)
        power = power_for(magnitude)
        if not COSINE:
            power = tl.zeros((ROWS,), ACC) + g
        inverse, square = inverse_length(c_ptr, rows, known, power, D, BLOCK_D, ROWS, ACC)
        if not COSINE:
            inverse = tl.full((ROWS,), 1.0, ACC)
        usable = finite & known & mine
        lowest = tl.minimum(lowest, tl.where(usable, rows, NO_ID).to(tl.int32))
        norm = tl.zeros((ROWS,), tl.float32)
        residual = tl.zeros((ROWS,), tl.float32)
        for first in range(0, WIDTH, BLOCK_D):
            half, lost, scaled = half_rows(c_ptr, rows, known, power, inverse, first, D, BLOCK_D, ACC)
            norm += tl.sum(scaled * scaled, axis=1)
            residual += tl.sum(lost * lost, axis=1)
            stored = tl.where(usable[:, None], half, float("nan"))
            d = first + tl.arange(0, BLOCK_D)
            tl.store(half_ptr + rows[:, None] * WIDTH + d[None, :], stored, mask=mine[:, None])
        most_norm = tl.maximum(most_norm, tl.where(usable, tl.sqrt(norm), 0.0))
        most_residual = tl.maximum(most_residual, tl.where(usable, tl.sqrt(residual), 0.0))
        if not COSINE:
            bias = 0.5 * square.to(tl.float32)
            most_bias = tl.maximum(most_bias, tl.where(usable, bias, 0.0))
            tl.store(bias_ptr + rows, tl.where(usable, -bias, 0.0), mask=mine)
    tl.store(stats_ptr + program, tl.max(most_norm, axis=0))
    tl.store(stats_ptr + PROGRAMS + program, tl.max(most_residual, axis=0))
    tl.store(stats_ptr + 2 * PROGRAMS + program, tl.max(most_bias, axis=0))
    tl.store(first_ptr + program, tl.min(lowest, axis=0))


@triton.jit
def _window(
    lost, norm, weight, zero, stats_ptr, programs,
    PROGRAMS: tl.constexpr, WIDTH: tl.constexpr, ID_BITS: tl.constexpr,
):  # fmt: skip
    """2 E of each row: E bounds what a packed block maximum differs from the float64 maximum of its block, scaled.

    lost, norm: |r x' - xh| and |xh|; weight: of the bias. Packing ID_BITS into the fraction moves a key by
    2^(ID_BITS - 23) of itself, and one near 0 by less than 2^-100. -1 where all scores are equal: of rows that are
    ``zero``, and of every row when all codes are.
    """
    p = tl.arange(0, PROGRAMS)
    codes = tl.max(tl.load(stats_ptr + p, mask=p < programs, other=0.0), axis=0)
    residual = tl.max(tl.load(stats_ptr + PROGRAMS + p, mask=p < programs, other=0.0), axis=0)
    bias = tl.max(tl.load(stats_ptr + 2 * PROGRAMS + p, mask=p < programs, other=0.0), axis=0)
    largest = norm * (codes + residual) + weight * bias
    relative: tl.constexpr = WIDTH * 2.0**-22 + 2.0**-20 + 2.0 ** (ID_BITS - 23)
    bound = lost * codes + norm * residual + relative * largest + 2.0**-100
    # 2^-20: the roundings of this computation itself and of c', x' and the bias in float32.
    return tl.where(zero | (tl.zeros_like(norm) + codes == 0), -1.0, 2.0 * bound * (1.0 + 2.0**-16))


@triton.jit
def _scales(
    x_ptr, range_ptr, rows, inside, D: tl.constexpr, BLOCK_D: tl.constexpr, NORMALIZE: tl.constexpr,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of rows: which are wanted, r x' = (power x) inverse, the weight of the bias beside the product of r x' and g c',
    and for which all scores are equal."""
    magnitude, finite = magnitude_of_rows(x_ptr, rows, inside, D, BLOCK_D, ROWS, ACC)
    power = power_for(magnitude)
    inverse = tl.full((ROWS,), 1.0, ACC)
    if NORMALIZE:
        inverse, _ = inverse_length(x_ptr, rows, inside, power, D, BLOCK_D, ROWS, ACC)
    weight = tl.zeros((ROWS,), tl.float32)
    zero = magnitude == 0
    if HAS_BIAS:
        r = power
        if NORMALIZE:
            r = tl.full((ROWS,), 1.0, ACC)
        # r / g. Beyond 2^100 the product is below the rounding of the bias.
        weight = tl.minimum(r * reciprocal(tl.load(range_ptr)), 2.0**100).to(tl.float32)
        zero = magnitude < 0
    return inside & finite, power, inverse, weight, zero


@triton.jit(do_not_specialize=["n", "programs"])
def rows_kernel(
    x_ptr, half_ptr, weight_ptr, range_ptr, stats_ptr, window_ptr, n, programs,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, NORMALIZE: tl.constexpr, HAS_BIAS: tl.constexpr,
    FAST: tl.constexpr, ID_BITS: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """float16 copies of rows for the screening, where it has no room to make them itself: wide ones, and float64's.

    n = 65536, D = 1024, bfloat16: 0.13 GB in and as much out, 55 us of an H100's memory beside a screening of 3 ms.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    wanted, power, inverse, weight, zero = _scales(
        x_ptr, range_ptr, rows, inside, D, BLOCK_D, NORMALIZE, HAS_BIAS, ROWS, ACC
    )
    lost_square = tl.zeros((ROWS,), tl.float32)
    half_square = tl.zeros((ROWS,), tl.float32)
    for first in range(0, WIDTH, BLOCK_D):
        half, lost, _ = half_rows(x_ptr, rows, wanted, power, inverse, first, D, BLOCK_D, ACC)
        lost_square += tl.sum(lost * lost, axis=1)
        half_square += tl.sum(half.to(tl.float32) * half.to(tl.float32), axis=1)
        d = first + tl.arange(0, BLOCK_D)
        tl.store(half_ptr + rows[:, None] * WIDTH + d[None, :], half, mask=inside[:, None])
    if HAS_BIAS:
        tl.store(weight_ptr + rows, weight, mask=inside)
    if not FAST:
        window = _window(
            tl.sqrt(lost_square), tl.sqrt(half_square), weight, zero, stats_ptr, programs, PROGRAMS, WIDTH, ID_BITS
        )
        tl.store(window_ptr + rows, window, mask=inside)


@triton.jit(do_not_specialize=["n", "tiles", "tiles_per_split", "programs"])
def screen_kernel(
    x_ptr, weight_ptr, half_ptr, bias_ptr, range_ptr, stats_ptr, first_ptr, second_ptr, third_ptr, window_ptr,
    n, tiles, tiles_per_split, programs,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, NORMALIZE: tl.constexpr, HAS_BIAS: tl.constexpr,
    READY: tl.constexpr, FAST: tl.constexpr, ID_BITS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, LANES: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows against one split of the codes; keeps per row and lane what the rescoring needs.

    n = 65536, K = 16384, D = 32: 1.07e9 scores, 6.9e10 operations, of which a tensor core of an H100 does 2048 a
    cycle: 64 scores a cycle and multiprocessor. The maximum costs one instruction a score, 64 a cycle: the same limit,
    1.5e13 scores a second if the two overlap. The codebook's 1 MB is read from L2 by every program: 0.5 GB in all.

    Exact: first, second: the two largest block maxima with the tile's number within the split in their low ID_BITS;
    third: the third largest. FAST: first: the largest score with its place in the block in the low bits (the lowest
    place largest), second: the tile's number. READY: x is what ``rows_kernel`` has left, and so are weight and window.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < n
    split = tl.program_id(1)
    lanes = tl.arange(0, LANES)
    d = tl.arange(0, BLOCK_D)
    if READY:
        x_at = x_ptr + rows[:, None] * WIDTH + d[None, :]
        if WIDTH == BLOCK_D:
            xh = tl.load(x_at, mask=inside[:, None], other=0.0)
        if HAS_BIAS:
            weight = tl.load(weight_ptr + rows, mask=inside, other=0.0)
    else:
        wanted, power, inverse, weight, zero = _scales(
            x_ptr, range_ptr, rows, inside, D, BLOCK_D, NORMALIZE, HAS_BIAS, BLOCK_M, ACC
        )
        xh, lost, _ = half_rows(x_ptr, rows, wanted, power, inverse, 0, D, BLOCK_D, ACC)
        if not FAST:
            if split == 0:
                lost_square = tl.sum(lost * lost, axis=1)
                half_square = tl.sum(xh.to(tl.float32) * xh.to(tl.float32), axis=1)
                window = _window(
                    tl.sqrt(lost_square), tl.sqrt(half_square), weight, zero, stats_ptr, programs,
                    PROGRAMS, WIDTH, ID_BITS,
                )  # fmt: skip
                tl.store(window_ptr + rows, window, mask=inside)

    CODES: tl.constexpr = BLOCK_N // LANES  # of a block: pairs of neighbours, 2 LANES apart
    if FAST:
        place = tl.arange(0, CODES // 2)[None, :, None, None] * 2 + tl.arange(0, 2)[None, None, None, :]
        stamp = (CODES - 1) - place
    m1 = tl.full((BLOCK_M, LANES), LOW, tl.float32)
    m2 = tl.full((BLOCK_M, LANES), LOW, tl.float32)
    m3 = tl.full((BLOCK_M, LANES), LOW, tl.float32)
    best_tile = tl.zeros((BLOCK_M, LANES), tl.int32)
    begin = split * tiles_per_split
    columns = tl.arange(0, BLOCK_N).to(tl.int64)
    for t in range(begin, tl.minimum(begin + tiles_per_split, tiles)):
        at = half_ptr + (columns + t * BLOCK_N)[:, None] * WIDTH + d[None, :]
        if WIDTH == BLOCK_D:
            scores = tl.dot(xh, tl.load(at).T)
        else:
            scores = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for first in range(0, WIDTH, BLOCK_D):
                part = tl.load(x_at + first, mask=inside[:, None], other=0.0)
                scores = tl.dot(part, tl.load(at + first).T, scores)
        if HAS_BIAS:
            bias = tl.load(bias_ptr + t * BLOCK_N + columns)
            scores += bias[None, :] * weight[:, None]
        blocks = tl.reshape(scores, (BLOCK_M, CODES // 2, LANES, 2))
        if FAST:
            stamped = (blocks.to(tl.int32, bitcast=True) & (-CODES)) | stamp
            key = tl.max(tl.max(stamped.to(tl.float32, bitcast=True), axis=3), axis=1)
            old = (m1.to(tl.int32, bitcast=True) & (-CODES)).to(tl.float32, bitcast=True)
            new = (key.to(tl.int32, bitcast=True) & (-CODES)).to(tl.float32, bitcast=True)
            better = new > old
            m1 = tl.where(better, key, m1)
            best_tile = tl.where(better, t, best_tile)
        else:
            top = tl.maximum(tl.max(tl.max(blocks, axis=3), axis=1), LOW)
            packed = (top.to(tl.int32, bitcast=True) & (-(1 << ID_BITS))) | (t - begin)
            key = packed.to(tl.float32, bitcast=True)
            low = tl.minimum(m1, key)
            m1 = tl.maximum(m1, key)
            lower = tl.minimum(m2, low)
            m2 = tl.maximum(m2, low)
            m3 = tl.maximum(m3, lower)

    out = (rows[:, None] * tl.num_programs(1) + split) * LANES + lanes[None, :]
    tl.store(first_ptr + out, m1, mask=inside[:, None])
    if FAST:
        tl.store(second_ptr + out, best_tile, mask=inside[:, None])
    else:
        tl.store(second_ptr + out, m2, mask=inside[:, None])
        tl.store(third_ptr + out, m3, mask=inside[:, None])


@triton.jit(do_not_specialize=["n", "num_codes", "tiles_per_split", "splits", "programs"])
def rescore_kernel(
    x_ptr, c_ptr, range_ptr, first_ptr, keys_ptr, third_ptr, window_ptr, ids_ptr, score_ptr,
    n, num_codes, tiles_per_split, splits, programs,
    D: tl.constexpr, BLOCK_D: tl.constexpr, COSINE: tl.constexpr, NORMALIZE: tl.constexpr, ID_BITS: tl.constexpr,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, LANES: tl.constexpr, MAX_SPLITS: tl.constexpr, ROWS: tl.constexpr,
    SCAN: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """The exact scores of the blocks that the bound could not rule out, a few rows a program.

    n = 65536, D = 32, a block of 32 codes: 4 KB of codes a row, 0.27 GB from L2, and 2048 operations a row.
    """
    rows, inside, finite, scale, inverse, r, t, square = owned_rows(
        x_ptr, range_ptr, n, D, BLOCK_D, COSINE, NORMALIZE, ROWS, ACC
    )

    CODES: tl.constexpr = BLOCK_N // LANES
    WIDE: tl.constexpr = MAX_SPLITS * LANES
    width = splits * LANES
    plane = n.to(tl.int64) * width
    q = tl.arange(0, 2 * WIDE)
    at = keys_ptr + (q // WIDE)[None, :] * plane + rows[:, None] * width + (q % WIDE)[None, :]
    keys = tl.load(at, mask=inside[:, None] & (q % WIDE < width)[None, :], other=LOW)
    top = tl.max(keys, axis=1)
    live = inside & finite & (top > LOW)
    window = tl.load(window_ptr + rows, mask=inside, other=0.0)
    best = tl.full((ROWS,), float("-inf"), ACC)
    best_id = tl.full((ROWS,), NO_ID, tl.int32)
    tied = live & (window < 0)
    if tl.sum(tied.to(tl.int32), axis=0) > 0:
        program = tl.arange(0, PROGRAMS)
        lowest = tl.min(tl.load(first_ptr + program, mask=program < programs, other=NO_ID), axis=0)
        best = tl.where(tied, 0.0, best)
        best_id = tl.where(tied, lowest, best_id)
    live = live & ~tied
    threshold = top - window
    keys = tl.where(live[:, None] & (keys >= threshold[:, None]), keys, LOW)
    e = tl.arange(0, CODES)
    place = (e // 2) * (2 * LANES) + e % 2
    while tl.max(tl.max(keys, axis=1), axis=0) > LOW:
        key, position = tl.max(keys, axis=1, return_indices=True)
        lane = position % LANES
        split = (position % WIDE) // LANES
        tile = split * tiles_per_split + (key.to(tl.int32, bitcast=True) & ((1 << ID_BITS) - 1))
        again = key > LOW
        codes = tl.where(again[:, None], (tile * BLOCK_N + lane * 2)[:, None] + place[None, :], NO_ID)
        scores = score_codes(
            x_ptr, c_ptr, rows, inside & again, codes, scale, inverse, r, t, num_codes, D, BLOCK_D, COSINE, ACC
        )
        best, best_id = take_better(best, best_id, scores, codes, again)
        keys = tl.where(q[None, :] == position[:, None], LOW, keys)

    # A lane whose third block is within the bound may hide a fourth: its split is searched whole.
    p = tl.arange(0, WIDE)
    third = tl.load(
        third_ptr + rows[:, None] * width + p[None, :],
        mask=inside[:, None] & (p < width)[None, :],
        other=LOW,
    )
    open_lanes = (~(third < threshold[:, None]) & live[:, None] & (p < width)[None, :]).to(tl.int32)
    if tl.sum(tl.sum(open_lanes, axis=1), axis=0) > 0:
        for split in range(splits):
            of_rows = tl.sum(open_lanes * (p // LANES == split)[None, :].to(tl.int32), axis=1)
            if tl.sum(of_rows, axis=0) > 0:
                begin = split * tiles_per_split * BLOCK_N
                for start in range(begin, tl.minimum(begin + tiles_per_split * BLOCK_N, num_codes), SCAN):
                    codes = (start + tl.arange(0, SCAN))[None, :]
                    scores = score_codes(
                        x_ptr, c_ptr, rows, inside & live, codes, scale, inverse, r, t, num_codes,
                        D, BLOCK_D, COSINE, ACC,
                    )  # fmt: skip
                    best, best_id = take_better(best, best_id, scores, codes, live)
    finish(ids_ptr, score_ptr, rows, inside, best, best_id, square, inverse, r, t, best_id < NO_ID, COSINE)


@triton.jit(do_not_specialize=["n", "num_codes", "splits"])
def pick_kernel(
    x_ptr, c_ptr, range_ptr, keys_ptr, tile_ptr, ids_ptr, score_ptr, n, num_codes, splits,
    D: tl.constexpr, BLOCK_D: tl.constexpr, COSINE: tl.constexpr, NORMALIZE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, LANES: tl.constexpr, MAX_SPLITS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """precision="fast": the best of all lanes and splits by half-precision score, and the true score of that code."""
    rows, inside, finite, scale, inverse, r, t, square = owned_rows(
        x_ptr, range_ptr, n, D, BLOCK_D, COSINE, NORMALIZE, ROWS, ACC
    )
    CODES: tl.constexpr = BLOCK_N // LANES
    p = tl.arange(0, MAX_SPLITS * LANES)
    width = splits * LANES
    there = inside[:, None] & (p < width)[None, :]
    stamped = tl.load(keys_ptr + rows[:, None] * width + p[None, :], mask=there, other=LOW)
    tile = tl.load(tile_ptr + rows[:, None] * width + p[None, :], mask=there, other=0)
    bits = stamped.to(tl.int32, bitcast=True)
    value = (bits & (-CODES)).to(tl.float32, bitcast=True)
    place = (CODES - 1) - (bits & (CODES - 1))
    codes = tile * BLOCK_N + (place // 2) * (2 * LANES) + (p % LANES)[None, :] * 2 + place % 2
    top = tl.max(value, axis=1)
    chosen = tl.min(tl.where(value == top[:, None], codes, NO_ID), axis=1)
    found = inside & finite & (tl.max(stamped, axis=1) > LOW)
    scores = score_codes(
        x_ptr, c_ptr, rows, found, chosen[:, None], scale, inverse, r, t, num_codes, D, BLOCK_D, COSINE, ACC
    )
    best = tl.max(scores, axis=1)
    found = found & (best > float("-inf"))
    finish(ids_ptr, score_ptr, rows, inside, best, chosen, square, inverse, r, t, found, COSINE)
