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
"""

from __future__ import annotations

import triton
import triton.language as tl

LOW = tl.constexpr(-3.0e38)
TINY = tl.constexpr(1e-12)  # torch.nn.functional.normalize divides by no less
NO_ID = tl.constexpr(2**31 - 1)


@triton.jit
def _row_scale(largest):
    """The power of two that brings float32 numbers of at most this magnitude into [-2, 2]."""
    exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
    return tl.maximum((254 << 23) - exponent, 1 << 23).to(tl.float32, bitcast=True)


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")


@triton.jit(do_not_specialize=["num_codes", "rows_per_program"])
def largest_kernel(
    c_ptr, out_ptr, num_codes, rows_per_program, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr
):
    """out[program] = the largest magnitude among its codes that are finite."""
    program = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((ROWS,), tl.float32)
    for start in range(0, rows_per_program, ROWS):
        rows = program * rows_per_program + start + tl.arange(0, ROWS)
        inside = (rows < num_codes) & (start + tl.arange(0, ROWS) < rows_per_program)
        magnitude = tl.zeros((ROWS,), tl.float32)
        finite = tl.full((ROWS,), 1, tl.int1)
        for first in range(0, D, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            at = c_ptr + rows[:, None] * D + d[None, :]
            c = tl.load(at, mask=inside[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
            good = _finite(c)
            finite = finite & (tl.sum((~good).to(tl.int32), axis=1) == 0)
            magnitude = tl.maximum(magnitude, tl.max(tl.where(good, tl.abs(c), 0.0), axis=1))
        largest = tl.maximum(largest, tl.where(finite, magnitude, 0.0))
    tl.store(out_ptr + program, tl.max(largest, axis=0))


@triton.jit(do_not_specialize=["num_codes", "padded_codes", "rows_per_program"])
def prepare_kernel(
    c_ptr, half_ptr, bias_ptr, largest_ptr, stats_ptr, num_codes, padded_codes, rows_per_program,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, COSINE: tl.constexpr, ROWS: tl.constexpr,
    PROGRAMS: tl.constexpr,
):  # fmt: skip
    """float16 copies of a share of the codes, scaled by g: K (4 D + 2 WIDTH) bytes, once a call.

    Codes that are not finite, and the rows that fill the last tile, become NaN: the screening's maximum passes them
    over. stats (3, PROGRAMS): the largest |g c'|, |g c' - ch| and g |c|^2 / 2 of each program.
    """
    program = tl.program_id(0).to(tl.int64)
    g = 1.0
    if not COSINE:
        of_programs = tl.arange(0, PROGRAMS)
        largest = tl.load(largest_ptr + of_programs, mask=of_programs < tl.num_programs(0), other=0.0)
        g = _row_scale(tl.max(largest, axis=0))
    most_norm = tl.zeros((ROWS,), tl.float32)
    most_residual = tl.zeros((ROWS,), tl.float32)
    most_bias = tl.zeros((ROWS,), tl.float32)
    for start in range(0, rows_per_program, ROWS):
        rows = program * rows_per_program + start + tl.arange(0, ROWS)
        mine = (rows < padded_codes) & (start + tl.arange(0, ROWS) < rows_per_program)
        square = tl.zeros((ROWS,), tl.float32)
        bad = tl.zeros((ROWS,), tl.int32)
        for first in range(0, D, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            at = c_ptr + rows[:, None] * D + d[None, :]
            c = tl.load(at, mask=(rows < num_codes)[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
            bad += tl.sum((~_finite(c)).to(tl.int32), axis=1)
            square += tl.sum(c * c, axis=1)
        scale = square * 0.0 + g
        if COSINE:
            scale = 1.0 / tl.maximum(tl.sqrt(square), TINY)
        usable = (bad == 0) & (rows < num_codes)
        if not COSINE:
            usable = usable & (square < float("inf"))
        norm = tl.zeros((ROWS,), tl.float32)
        residual = tl.zeros((ROWS,), tl.float32)
        for first in range(0, WIDTH, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            at = c_ptr + rows[:, None] * D + d[None, :]
            c = tl.load(at, mask=(rows < num_codes)[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
            scaled = c * scale[:, None]
            half = scaled.to(tl.float16)
            lost = scaled - half.to(tl.float32)
            norm += tl.sum(scaled * scaled, axis=1)
            residual += tl.sum(lost * lost, axis=1)
            stored = tl.where(usable[:, None], half, float("nan"))
            tl.store(half_ptr + rows[:, None] * WIDTH + d[None, :], stored, mask=mine[:, None])
        counted = usable & mine
        most_norm = tl.maximum(most_norm, tl.where(counted, tl.sqrt(norm), 0.0))
        most_residual = tl.maximum(most_residual, tl.where(counted, tl.sqrt(residual), 0.0))
        if not COSINE:
            bias = 0.5 * square * g
            most_bias = tl.maximum(most_bias, tl.where(counted, bias, 0.0))
            tl.store(bias_ptr + rows, tl.where(usable, -bias, 0.0), mask=mine)
    tl.store(stats_ptr + program, tl.max(most_norm, axis=0))
    tl.store(stats_ptr + PROGRAMS + program, tl.max(most_residual, axis=0))
    tl.store(stats_ptr + 2 * PROGRAMS + program, tl.max(most_bias, axis=0))


@triton.jit
def _window(lost, norm, r, stats_ptr, programs, PROGRAMS: tl.constexpr, WIDTH: tl.constexpr, ID_BITS: tl.constexpr):
    """2 E of each row: E bounds what a packed block maximum differs from the float64 maximum of its block, scaled.

    lost, norm: |r x' - xh| and |xh|. Packing ID_BITS into the fraction moves a key by 2^(ID_BITS - 23) of itself.
    """
    p = tl.arange(0, PROGRAMS)
    codes = tl.max(tl.load(stats_ptr + p, mask=p < programs, other=0.0), axis=0)
    residual = tl.max(tl.load(stats_ptr + PROGRAMS + p, mask=p < programs, other=0.0), axis=0)
    bias = tl.max(tl.load(stats_ptr + 2 * PROGRAMS + p, mask=p < programs, other=0.0), axis=0)
    largest = norm * (codes + residual) + r * bias
    relative: tl.constexpr = WIDTH * 2.0**-22 + 2.0**-20 + 2.0 ** (ID_BITS - 23)
    bound = lost * codes + norm * residual + relative * largest
    # 2^-20: the roundings of this computation itself and of c', x' and the bias in float32.
    return 2.0 * bound * (1.0 + 2.0**-16)


@triton.jit
def _scan_for_scale(x_ptr, rows, inside, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr):
    """|x|^2, the largest magnitude and whether all is finite, of rows of x."""
    square = tl.zeros((ROWS,), ACC)
    largest = tl.zeros((ROWS,), tl.float32)
    bad = tl.zeros((ROWS,), tl.int32)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        x = tl.load(x_ptr + rows[:, None] * D + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0).to(ACC)
        bad += tl.sum((~_finite(x)).to(tl.int32), axis=1)
        square += tl.sum(x * x, axis=1)
        largest = tl.maximum(largest, tl.max(tl.abs(x).to(tl.float32), axis=1))
    return square, largest, bad == 0


@triton.jit
def _half_rows(x_ptr, rows, wanted, scale, first, D: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr):
    """xh and r x' - xh for columns first.. of rows of x; zero where a row is not wanted."""
    d = first + tl.arange(0, BLOCK_D)
    x = tl.load(x_ptr + rows[:, None] * D + d[None, :], mask=wanted[:, None] & (d < D)[None, :], other=0.0).to(ACC)
    scaled = (x * scale[:, None]).to(tl.float32)
    half = scaled.to(tl.float16)
    return half, scaled - half.to(tl.float32)


@triton.jit(do_not_specialize=["n", "tiles", "tiles_per_split", "programs"])
def screen_kernel(
    x_ptr, half_ptr, bias_ptr, stats_ptr, first_ptr, second_ptr, third_ptr, window_ptr,
    n, tiles, tiles_per_split, programs,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, NORMALIZE: tl.constexpr, HAS_BIAS: tl.constexpr,
    FAST: tl.constexpr, ID_BITS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, LANES: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows against one split of the codes; keeps per row and lane what the rescoring needs.

    n = 65536, K = 16384, D = 32: 1.07e9 scores, 6.9e10 operations, of which a tensor core of an H100 does 2048 a
    cycle: 64 scores a cycle and multiprocessor. The maximum costs one instruction a score, 64 a cycle: the same limit,
    1.5e13 scores a second if the two overlap. The codebook's 1 MB is read from L2 by every program: 0.5 GB in all.

    Exact: first, second: the two largest block maxima with the tile's number within the split in their low ID_BITS;
    third: the third largest. FAST: first: the largest score with its place in the block in the low bits (the lowest
    place largest), second: the tile's number.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < n
    square, largest, finite = _scan_for_scale(x_ptr, rows, inside, D, BLOCK_D, BLOCK_M, ACC)
    r = square.to(tl.float32) * 0.0 + 1.0
    if NORMALIZE:
        scale = 1.0 / tl.maximum(tl.sqrt(square), TINY)
    else:
        r = _row_scale(tl.where(finite & (largest > 0.0), largest, 1.0))
        scale = r.to(ACC)
    wanted = inside & finite
    split = tl.program_id(1)
    lanes = tl.arange(0, LANES)
    xh, lost = _half_rows(x_ptr, rows, wanted, scale, 0, D, BLOCK_D, ACC)
    lost_square = tl.sum(lost * lost, axis=1)
    half_square = tl.sum(xh.to(tl.float32) * xh.to(tl.float32), axis=1)
    for first in range(BLOCK_D, WIDTH, BLOCK_D):
        part, lost = _half_rows(x_ptr, rows, wanted, scale, first, D, BLOCK_D, ACC)
        lost_square += tl.sum(lost * lost, axis=1)
        half_square += tl.sum(part.to(tl.float32) * part.to(tl.float32), axis=1)
    if not FAST:
        if split == 0:
            residual, norm = tl.sqrt(lost_square), tl.sqrt(half_square)
            window = _window(residual, norm, r, stats_ptr, programs, PROGRAMS, WIDTH, ID_BITS)
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
    d = tl.arange(0, BLOCK_D)
    for t in range(begin, tl.minimum(begin + tiles_per_split, tiles)):
        at = half_ptr + (columns + t * BLOCK_N)[:, None] * WIDTH + d[None, :]
        if WIDTH == BLOCK_D:
            scores = tl.dot(xh, tl.load(at).T)
        else:
            scores = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for first in range(0, WIDTH, BLOCK_D):
                part, _ = _half_rows(x_ptr, rows, wanted, scale, first, D, BLOCK_D, ACC)
                scores = tl.dot(part, tl.load(at + first).T, scores)
        if HAS_BIAS:
            bias = tl.load(bias_ptr + t * BLOCK_N + columns)
            scores += bias[None, :] * r[:, None]
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


@triton.jit
def _owned_rows(
    x_ptr, n, D: tl.constexpr, BLOCK_D: tl.constexpr, NORMALIZE: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr
):
    """The rows of a program, which of them there are, |x|^2, the factor that makes x' of x, and which are finite."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    square, _, finite = _scan_for_scale(x_ptr, rows, inside, D, BLOCK_D, ROWS, ACC)
    inverse = square * 0.0 + 1.0
    if NORMALIZE:
        inverse = 1.0 / tl.maximum(tl.sqrt(square), TINY)
    return rows, inside, square, inverse, finite


@triton.jit
def _scores(
    x_ptr, c_ptr, rows, wanted, codes, inverse, num_codes,
    D: tl.constexpr, BLOCK_D: tl.constexpr, COSINE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Scores of rows (R,) with codes (R or 1, E), as the definition has them: x.c / |c|, or x'.c - |c|^2 / 2.

    A code that is not finite, or out of range, gets -inf. Every score is summed in the same order wherever it is
    computed, so that equal codes tie.
    """
    product = (rows[:, None] + codes).to(ACC) * 0.0
    square = codes.to(ACC) * 0.0
    bad = codes * 0
    known = codes < num_codes
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        x = tl.load(x_ptr + rows[:, None] * D + d[None, :], mask=wanted[:, None] & (d < D)[None, :], other=0.0).to(ACC)
        at = c_ptr + codes.to(tl.int64)[:, :, None] * D + d[None, None, :]
        c = tl.load(at, mask=known[:, :, None] & (d < D)[None, None, :], other=0.0).to(ACC)
        product += tl.sum(x[:, None, :] * c, axis=2)
        square += tl.sum(c * c, axis=2)
        bad += tl.sum((~_finite(c)).to(tl.int32), axis=2)
    if COSINE:
        score = product / tl.maximum(tl.sqrt(square), TINY)
    else:
        score = product * inverse[:, None] - 0.5 * square
    return tl.where(known & (bad == 0), score, float("-inf"))


@triton.jit
def _take_better(best, best_id, scores, codes, live):
    """The running best of each row and its id, the lowest among equals."""
    top = tl.max(scores, axis=1)
    at_top = tl.where(scores == top[:, None], codes, NO_ID)
    lowest = tl.min(at_top, axis=1)
    better = live & ((top > best) | ((top == best) & (lowest < best_id) & (top > float("-inf"))))
    return tl.where(better, top, best), tl.where(better, lowest, best_id)


@triton.jit
def _finish(ids_ptr, score_ptr, rows, inside, best, best_id, square, inverse, found, COSINE: tl.constexpr):
    """Cosine similarity or squared distance; -1 and NaN where nothing was found."""
    if COSINE:
        score = best * inverse
    else:
        score = tl.maximum(square * inverse * inverse - 2.0 * best, 0.0)
    tl.store(ids_ptr + rows, tl.where(found, best_id, -1).to(tl.int64), mask=inside)
    tl.store(score_ptr + rows, tl.where(found, score, float("nan")).to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["n", "num_codes", "tiles_per_split", "splits"])
def rescore_kernel(
    x_ptr, c_ptr, keys_ptr, third_ptr, window_ptr, ids_ptr, score_ptr, n, num_codes, tiles_per_split, splits,
    D: tl.constexpr, BLOCK_D: tl.constexpr, COSINE: tl.constexpr, NORMALIZE: tl.constexpr, ID_BITS: tl.constexpr,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, LANES: tl.constexpr, MAX_SPLITS: tl.constexpr, ROWS: tl.constexpr,
    SCAN: tl.constexpr,
):  # fmt: skip
    """The exact scores of the blocks that the bound could not rule out, a few rows a program.

    n = 65536, D = 32, a block of 32 codes: 4 KB of codes a row, 0.27 GB from L2, and 2048 operations a row.
    """
    rows, inside, square, inverse, finite = _owned_rows(x_ptr, n, D, BLOCK_D, NORMALIZE, ROWS, ACC)

    CODES: tl.constexpr = BLOCK_N // LANES
    WIDE: tl.constexpr = MAX_SPLITS * LANES
    width = splits * LANES
    plane = n.to(tl.int64) * width
    q = tl.arange(0, 2 * WIDE)
    at = keys_ptr + (q // WIDE)[None, :] * plane + rows[:, None] * width + (q % WIDE)[None, :]
    keys = tl.load(at, mask=inside[:, None] & (q % WIDE < width)[None, :], other=LOW)
    top = tl.max(keys, axis=1)
    live = inside & finite & (top > LOW)
    threshold = top - tl.load(window_ptr + rows, mask=inside, other=0.0)
    keys = tl.where(live[:, None] & (keys >= threshold[:, None]), keys, LOW)
    best = tl.full((ROWS,), float("-inf"), ACC)
    best_id = tl.full((ROWS,), NO_ID, tl.int32)
    e = tl.arange(0, CODES)
    place = (e // 2) * (2 * LANES) + e % 2
    while tl.max(tl.max(keys, axis=1), axis=0) > LOW:
        key, position = tl.max(keys, axis=1, return_indices=True)
        lane = position % LANES
        split = (position % WIDE) // LANES
        tile = split * tiles_per_split + (key.to(tl.int32, bitcast=True) & ((1 << ID_BITS) - 1))
        again = key > LOW
        codes = tl.where(again[:, None], (tile * BLOCK_N + lane * 2)[:, None] + place[None, :], NO_ID)
        scores = _scores(x_ptr, c_ptr, rows, inside & again, codes, inverse, num_codes, D, BLOCK_D, COSINE, ACC)
        best, best_id = _take_better(best, best_id, scores, codes, again)
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
                    scores = _scores(
                        x_ptr, c_ptr, rows, inside & live, codes, inverse, num_codes, D, BLOCK_D, COSINE, ACC
                    )
                    best, best_id = _take_better(best, best_id, scores, codes, live)
    _finish(ids_ptr, score_ptr, rows, inside, best, best_id, square, inverse, best_id < NO_ID, COSINE)


@triton.jit(do_not_specialize=["n", "num_codes", "splits"])
def pick_kernel(
    x_ptr, c_ptr, keys_ptr, tile_ptr, ids_ptr, score_ptr, n, num_codes, splits,
    D: tl.constexpr, BLOCK_D: tl.constexpr, COSINE: tl.constexpr, NORMALIZE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, LANES: tl.constexpr, MAX_SPLITS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """precision="fast": the best of all lanes and splits by half-precision score, and the true score of that code."""
    rows, inside, square, inverse, finite = _owned_rows(x_ptr, n, D, BLOCK_D, NORMALIZE, ROWS, ACC)
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
    scores = _scores(x_ptr, c_ptr, rows, found, chosen[:, None], inverse, num_codes, D, BLOCK_D, COSINE, ACC)
    best = tl.max(scores, axis=1)
    found = found & (best > float("-inf"))
    _finish(ids_ptr, score_ptr, rows, inside, best, chosen, square, inverse, found, COSINE)
