"""The release's masked attention as streams over key blocks; the N x N weights exist a tile at a time.

With L_i the logarithm of sum_j P_ij exp(s_ij), M_i the maximum of s_ij over all columns, masked ones included, and
vbar the mean of all values, the release's weights give
    out_i = ((1 - leak_i) softmax over the visible columns of v)_i + leak_i vbar,  leak_i = eps / (exp(L_i - M_i) + eps)
so a row needs the usual streamed softmax over what it sees, the maximum over all columns, and vbar. For the backward
lse_i = M_i + log(exp(L_i - M_i) + eps), with which exp(s_ij - lse_i) = e_ij / den_i of reference.py; g is the gradient
of out, delta_i = g_i.out_i. The gradient that reaches M_i itself is slope_i = leak_i (delta_i - g_i.vbar): it belongs
to the first column that has the maximum.

Columns come in two parts, D0 + D1, so that LaVIT's heads of 88 take 64 + 32 and not 128; D1 = 0 leaves out the second.
Row, head and image strides come in units of 8 elements, which tells the compiler how far vectors are aligned.
A causal block of queries meets three kinds of keys: PART 0, all before it; 1, across its diagonal; 2, all behind it,
which matter to the maximum and to vbar only. Without eps they do not matter. Cross-attention has PART 0 only.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
HIGHEST = tl.constexpr(64.0)  # LARGEST_EXPONENT of reference.py, in powers of two
UNIT = tl.constexpr(8)
# Whatever they are, one compilation serves.
SIZES = ["n", "heads", *(f"{x}_{axis}" for x in "gqkv" for axis in ("image", "row", "head"))]


@triton.jit
def _rows_of(ptr, rows, stride, n, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, ZERO: tl.constexpr):
    """Columns FIRST to FIRST + WIDTH of some rows; those beyond n are zero, or the last row again. None if none."""
    if WIDTH == 0:
        x = None
    else:
        d = FIRST + tl.arange(0, WIDTH)[None, :]
        at = ptr + tl.minimum(rows, n - 1)[:, None] * (stride * UNIT) + d
        if ZERO:
            x = tl.load(at, mask=(rows < n)[:, None] & (d < D), other=0.0)
        elif FIRST + WIDTH > D:
            x = tl.load(at, mask=d < D, other=0.0)
        else:
            x = tl.load(at)
    return x


@triton.jit
def _store_rows(ptr, rows, stride, n, x, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    d = FIRST + tl.arange(0, WIDTH)[None, :]
    tl.store(ptr + rows[:, None] * stride + d, x.to(ptr.dtype.element_ty), mask=(rows < n)[:, None] & (d < D))


@triton.jit
def _vector_of(ptr, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    d = FIRST + tl.arange(0, WIDTH)
    return tl.load(ptr + d, mask=d < D, other=0.0)


@triton.jit
def _store_vector(ptr, x, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    d = FIRST + tl.arange(0, WIDTH)
    tl.store(ptr + d, x, mask=d < D)


@triton.jit
def _times_transposed(a0, a1, b0, b1, D1: tl.constexpr):
    """a b^T over both column parts."""
    c = tl.dot(a0, tl.trans(b0), input_precision="ieee")
    if D1 > 0:
        c = tl.dot(a1, tl.trans(b1), acc=c, input_precision="ieee")
    return c


@triton.jit
def _policy(keep_ptr, keys, n, CAUSAL: tl.constexpr):
    """P of the keys for all later queries (causal) or for all (cross); 0 beyond n."""
    if CAUSAL:
        return tl.load(keep_ptr + keys, mask=keys < n, other=0.0)
    return 1.0 - tl.load(keep_ptr + keys, mask=keys < n, other=1.0)


@triton.jit
def _bounded(s, p):
    """Exponents without eps: of masked columns up to HIGHEST. NaN stays NaN."""
    return tl.where(p == 0, tl.minimum(s, HIGHEST, propagate_nan=tl.PropagateNan.ALL), s)


@triton.jit
def _part(first, length, n, STEP: tl.constexpr, CAUSAL: tl.constexpr, PART: tl.constexpr):
    """Where the blocks of STEP begin and end that lie before the tokens [first, first + length) (0), meet them (1) or
    lie behind them (2); for cross-attention, all are 0."""
    begin = first // STEP * STEP
    end = tl.cdiv(first + length, STEP) * STEP
    if not CAUSAL:
        return 0, n
    if PART == 0:
        return 0, begin
    if PART == 1:
        return begin, tl.minimum(end, n)
    return end, n


# B=64 N=256 H=16 D=88 bfloat16: 185 MB in and out once, 55 us of an H100's memory; 24 GFLOP of products (26 at 96
# columns), 30 us of its tensor cores at full rate, and 67 M exponentials, 18 us. Memory is the limit; what hides in its
# time is that both blocks of queries of a head read its keys and values, the second time from the cache.
@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q_ptr, k_ptr, v_ptr, keep_ptr, out_ptr, lse_ptr, leak_ptr, mean_ptr,
    n, heads, q_image, q_row, q_head, k_image, k_row, k_head, v_image, v_row, v_head, scale, eps,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, CAUSAL: tl.constexpr, EPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns a block of queries of one head. It streams the keys it sees, with a running maximum and sum, then
    (causal) those behind, and stores the rows, their lse and leak, and, as the head's first block, vbar."""
    blocks = tl.cdiv(n, BLOCK_M)
    program = tl.program_id(0)
    block = blocks - 1 - program % blocks
    image = (program // blocks // heads).to(tl.int64)
    head = (program // blocks % heads).to(tl.int64)
    q_ptr += (image * q_image + head * q_head) * UNIT
    k_ptr += (image * k_image + head * k_head) * UNIT
    v_ptr += (image * v_image + head * v_head) * UNIT
    keep_ptr += image * n

    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    q0 = _rows_of(q_ptr, rows, q_row, n, 0, D0, D, False)
    q1 = _rows_of(q_ptr, rows, q_row, n, D0, D1, D, False)
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc0 = tl.zeros((BLOCK_M, D0), tl.float32)
    mean0 = tl.zeros((D0,), tl.float32)
    if D1 > 0:
        acc1 = tl.zeros((BLOCK_M, D1), tl.float32)
        mean1 = tl.zeros((D1,), tl.float32)
    for PART in tl.static_range(3 if CAUSAL and EPS else 2 if CAUSAL else 1):
        first, last = _part(block * BLOCK_M, BLOCK_M, n, BLOCK_N, CAUSAL, PART)
        for start in range(first, last, BLOCK_N):
            keys = start + tl.arange(0, BLOCK_N)
            k0 = _rows_of(k_ptr, keys, k_row, n, 0, D0, D, False)
            k1 = _rows_of(k_ptr, keys, k_row, n, D0, D1, D, False)
            s = _times_transposed(q0, q1, k0, k1, D1) * (scale * LOG2E)
            v0 = _rows_of(v_ptr, keys, v_row, n, 0, D0, D, True)
            v1 = _rows_of(v_ptr, keys, v_row, n, D0, D1, D, True)
            if EPS:
                # Both drop NaN: min takes infinity for it, so that max does not.
                highest = tl.maximum(highest, tl.max(tl.minimum(s, float("inf")), axis=1))
                mean0 += tl.sum(v0.to(tl.float32), axis=0)
                if D1 > 0:
                    mean1 += tl.sum(v1.to(tl.float32), axis=0)
            if PART < 2:
                p = _policy(keep_ptr, keys, n, CAUSAL)[None, :]
                if PART == 1:
                    p = tl.where(keys[None, :] < rows[:, None], p, (keys[None, :] == rows[:, None]).to(tl.float32))
                s = tl.where(p != 0, s, float("-inf"))
                higher = tl.maximum(peak, tl.max(s, axis=1))
                base = tl.where(higher == float("-inf"), 0.0, higher)
                shrink = tl.exp2(peak - base)
                w = tl.exp2(s - base[:, None]) * p
                total = total * shrink + tl.sum(w, axis=1)
                peak = higher
                w = w.to(v0.dtype)
                acc0 = tl.dot(w, v0, acc=acc0 * shrink[:, None], input_precision="ieee")
                if D1 > 0:
                    acc1 = tl.dot(w, v1, acc=acc1 * shrink[:, None], input_precision="ieee")

    stats = (image * heads + head) * n
    out_ptr += image * n * heads * D + head * D
    mean0 = mean0 / n
    if EPS:
        highest = tl.where(highest < float("inf"), highest, float("nan"))
        shrink = tl.exp2(peak - highest)
        den = total * shrink + eps
        leak = eps / den
        lse = (highest + tl.log2(den)) * LN2
        acc0 = acc0 * (shrink / den)[:, None] + leak[:, None] * mean0[None, :]
    else:
        empty = total <= 0  # NaN is not
        shrink = tl.where(empty, 0.0, 1.0)
        den = tl.where(empty, 1.0, total)
        leak = tl.zeros((BLOCK_M,), tl.float32)
        lse = tl.where(empty, float("inf"), (peak + tl.log2(den)) * LN2)
        acc0 = acc0 * (shrink / den)[:, None]
    tl.store(lse_ptr + stats + rows, lse, mask=rows < n)
    tl.store(leak_ptr + stats + rows, leak, mask=rows < n)
    _store_rows(out_ptr, rows, heads * D, n, acc0, 0, D0, D)
    mean_ptr += (image * heads + head) * D
    if block == 0:
        _store_vector(mean_ptr, mean0, 0, D0, D)
    if D1 > 0:
        mean1 = mean1 / n
        acc1 = acc1 * (shrink / den)[:, None]
        if EPS:
            acc1 += leak[:, None] * mean1[None, :]
        _store_rows(out_ptr, rows, heads * D, n, acc1, D0, D1, D)
        if block == 0:
            _store_vector(mean_ptr, mean1, D0, D1, D)


# The same shape: q, g, out, k, v in and dq out, 0.27 GB, 83 us; 1.5 times the forward's products.
@triton.jit(do_not_specialize=SIZES)
def query_gradient_kernel(
    g_ptr, q_ptr, k_ptr, v_ptr, keep_ptr, out_ptr, lse_ptr, leak_ptr, mean_ptr,
    dq_ptr, delta_ptr, slope_ptr, top_ptr, leaked_ptr,
    n, heads, g_image, g_row, g_head, q_image, q_row, q_head, k_image, k_row, k_head, v_image, v_row, v_head, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, CAUSAL: tl.constexpr, EPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns a block of queries of one head. It takes delta and slope from its rows alone, streams the keys for
    dq and for the first column of the maximum (top), subtracts slope times that key, and stores dq, delta, slope, top
    and its share of what every dv_j gets, sum_i leak_i g_i / N."""
    blocks = tl.cdiv(n, BLOCK_M)
    program = tl.program_id(0)
    block = blocks - 1 - program % blocks
    image = (program // blocks // heads).to(tl.int64)
    head = (program // blocks % heads).to(tl.int64)
    g_ptr += (image * g_image + head * g_head) * UNIT
    q_ptr += (image * q_image + head * q_head) * UNIT
    k_ptr += (image * k_image + head * k_head) * UNIT
    v_ptr += (image * v_image + head * v_head) * UNIT
    keep_ptr += image * n
    packed = image * n * heads * D + head * D
    stats = (image * heads + head) * n

    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    g0 = _rows_of(g_ptr, rows, g_row, n, 0, D0, D, True)
    g1 = _rows_of(g_ptr, rows, g_row, n, D0, D1, D, True)
    out0 = _rows_of(out_ptr + packed, rows, heads * (D // UNIT), n, 0, D0, D, False)
    delta = tl.sum(g0.to(tl.float32) * out0.to(tl.float32), axis=1)
    if D1 > 0:
        out1 = _rows_of(out_ptr + packed, rows, heads * (D // UNIT), n, D0, D1, D, False)
        delta += tl.sum(g1.to(tl.float32) * out1.to(tl.float32), axis=1)
    tl.store(delta_ptr + stats + rows, delta, mask=rows < n)
    lse = tl.load(lse_ptr + stats + rows, mask=rows < n, other=float("inf")) * LOG2E
    if EPS:
        leak = tl.load(leak_ptr + stats + rows, mask=rows < n, other=0.0)
        mean_ptr += (image * heads + head) * D
        leaked_ptr += ((image * heads + head) * blocks + block) * D
        slope = delta - tl.sum(g0.to(tl.float32) * _vector_of(mean_ptr, 0, D0, D)[None, :], axis=1)
        _store_vector(leaked_ptr, tl.sum(leak[:, None] * g0.to(tl.float32), axis=0) / n, 0, D0, D)
        if D1 > 0:
            slope -= tl.sum(g1.to(tl.float32) * _vector_of(mean_ptr, D0, D1, D)[None, :], axis=1)
            _store_vector(leaked_ptr, tl.sum(leak[:, None] * g1.to(tl.float32), axis=0) / n, D0, D1, D)
        slope *= leak
        tl.store(slope_ptr + stats + rows, slope, mask=rows < n)

    q0 = _rows_of(q_ptr, rows, q_row, n, 0, D0, D, False)
    q1 = _rows_of(q_ptr, rows, q_row, n, D0, D1, D, False)
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    top = tl.zeros((BLOCK_M,), tl.int32)
    acc0 = tl.zeros((BLOCK_M, D0), tl.float32)
    if D1 > 0:
        acc1 = tl.zeros((BLOCK_M, D1), tl.float32)
    for PART in tl.static_range(3 if CAUSAL and EPS else 2 if CAUSAL else 1):
        first, last = _part(block * BLOCK_M, BLOCK_M, n, BLOCK_N, CAUSAL, PART)
        for start in range(first, last, BLOCK_N):
            keys = start + tl.arange(0, BLOCK_N)
            k0 = _rows_of(k_ptr, keys, k_row, n, 0, D0, D, False)
            k1 = _rows_of(k_ptr, keys, k_row, n, D0, D1, D, False)
            s = _times_transposed(q0, q1, k0, k1, D1) * (scale * LOG2E)
            if EPS:
                high = tl.max(s, axis=1)
                place = tl.min(tl.where(s == high[:, None], keys[None, :], 2147483647), axis=1)
                top = tl.where(high > highest, tl.minimum(place, n - 1), top)
                highest = tl.maximum(highest, high)
            if PART < 2:
                v0 = _rows_of(v_ptr, keys, v_row, n, 0, D0, D, False)
                v1 = _rows_of(v_ptr, keys, v_row, n, D0, D1, D, False)
                da = _times_transposed(g0, g1, v0, v1, D1)
                p = _policy(keep_ptr, keys, n, CAUSAL)[None, :]
                if PART == 1:
                    p = tl.where(keys[None, :] < rows[:, None], p, (keys[None, :] == rows[:, None]).to(tl.float32))
                s -= lse[:, None]
                if not EPS:
                    s = _bounded(s, p)
                # Scaled before it is rounded: float16 ends at 65504.
                ds = (tl.exp2(s) * p * ((da - delta[:, None]) * scale)).to(k0.dtype)
                acc0 = tl.dot(ds, k0, acc=acc0, input_precision="ieee")
                if D1 > 0:
                    acc1 = tl.dot(ds, k1, acc=acc1, input_precision="ieee")

    if EPS:
        tl.store(top_ptr + stats + rows, top, mask=rows < n)
        slope *= scale
        acc0 -= slope[:, None] * _rows_of(k_ptr, top, k_row, n, 0, D0, D, False).to(tl.float32)
    _store_rows(dq_ptr + packed, rows, heads * D, n, acc0, 0, D0, D)
    if D1 > 0:
        if EPS:
            acc1 -= slope[:, None] * _rows_of(k_ptr, top, k_row, n, D0, D1, D, False).to(tl.float32)
        _store_rows(dq_ptr + packed, rows, heads * D, n, acc1, D0, D1, D)


# The same shape: k, v, q, g in and dk, dv out, 0.27 GB, 83 us; twice the forward's products.
@triton.jit(do_not_specialize=SIZES)
def key_gradient_kernel(
    g_ptr, q_ptr, k_ptr, v_ptr, keep_ptr, lse_ptr, delta_ptr, slope_ptr, top_ptr, leaked_ptr,
    dk_ptr, dv_ptr, dkeep_ptr,
    n, heads, g_image, g_row, g_head, q_image, q_row, q_head, k_image, k_row, k_head, v_image, v_row, v_head, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, CAUSAL: tl.constexpr, EPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns a block of keys of one head. It streams the queries, those that see its keys and (causal) those
    before, whose maximum may lie here, and stores dk, dv and the head's share of dkeep. Tiles are (keys, queries)."""
    blocks = tl.cdiv(n, BLOCK_N)
    program = tl.program_id(0)
    block = program % blocks
    image = (program // blocks // heads).to(tl.int64)
    head = (program // blocks % heads).to(tl.int64)
    g_ptr += (image * g_image + head * g_head) * UNIT
    q_ptr += (image * q_image + head * q_head) * UNIT
    k_ptr += (image * k_image + head * k_head) * UNIT
    v_ptr += (image * v_image + head * v_head) * UNIT
    stats = (image * heads + head) * n

    keys = block * BLOCK_N + tl.arange(0, BLOCK_N)
    k0 = _rows_of(k_ptr, keys, k_row, n, 0, D0, D, False)
    k1 = _rows_of(k_ptr, keys, k_row, n, D0, D1, D, False)
    v0 = _rows_of(v_ptr, keys, v_row, n, 0, D0, D, False)
    v1 = _rows_of(v_ptr, keys, v_row, n, D0, D1, D, False)
    policy = _policy(keep_ptr + image * n, keys, n, CAUSAL)[:, None]
    dk0 = tl.zeros((BLOCK_N, D0), tl.float32)
    dv0 = tl.zeros((BLOCK_N, D0), tl.float32)
    dkeep = tl.zeros((BLOCK_N,), tl.float32)
    if D1 > 0:
        dk1 = tl.zeros((BLOCK_N, D1), tl.float32)
        dv1 = tl.zeros((BLOCK_N, D1), tl.float32)
    for STEP in tl.static_range(3 if CAUSAL and EPS else 2 if CAUSAL else 1):
        # Queries behind the keys, across and before them, as the keys are before, across and behind the queries.
        first, last = _part(block * BLOCK_N, BLOCK_N, n, BLOCK_M, CAUSAL, 2 - STEP)
        for start in range(first, last, BLOCK_M):
            rows = start + tl.arange(0, BLOCK_M)
            q0 = _rows_of(q_ptr, rows, q_row, n, 0, D0, D, False)
            q1 = _rows_of(q_ptr, rows, q_row, n, D0, D1, D, False)
            ds = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            if STEP < 2:
                g0 = _rows_of(g_ptr, rows, g_row, n, 0, D0, D, False)
                g1 = _rows_of(g_ptr, rows, g_row, n, D0, D1, D, False)
                lse = tl.load(lse_ptr + stats + rows, mask=rows < n, other=float("inf")) * LOG2E
                delta = tl.load(delta_ptr + stats + rows, mask=rows < n, other=0.0)
                s = _times_transposed(k0, k1, q0, q1, D1) * (scale * LOG2E) - lse[None, :]
                p = policy
                if STEP == 1:
                    p = tl.where(keys[:, None] < rows[None, :], p, (keys[:, None] == rows[None, :]).to(tl.float32))
                if not EPS:
                    s = _bounded(s, p)
                e = tl.exp2(s)
                w = (e * p).to(g0.dtype)
                dv0 = tl.dot(w, g0, acc=dv0, input_precision="ieee")
                if D1 > 0:
                    dv1 = tl.dot(w, g1, acc=dv1, input_precision="ieee")
                d = _times_transposed(v0, v1, g0, g1, D1) - delta[None, :]
                ds = e * p * d
                dp = e * d
                if STEP == 1:
                    dp = tl.where(keys[:, None] < rows[None, :], dp, 0.0)
                dkeep += tl.sum(dp, axis=1)
            if EPS:
                slope = tl.load(slope_ptr + stats + rows, mask=rows < n, other=0.0)
                top = tl.load(top_ptr + stats + rows, mask=rows < n, other=-1)
                ds -= tl.where(keys[:, None] == top[None, :], slope[None, :], 0.0)
            ds = (ds * scale).to(q0.dtype)
            dk0 = tl.dot(ds, q0, acc=dk0, input_precision="ieee")
            if D1 > 0:
                dk1 = tl.dot(ds, q1, acc=dk1, input_precision="ieee")

    packed = image * n * heads * D + head * D
    tl.store(dkeep_ptr + stats + keys, dkeep if CAUSAL else -dkeep, mask=keys < n)
    leaked_ptr += (image * heads + head) * D
    if EPS:
        dv0 += _vector_of(leaked_ptr, 0, D0, D)[None, :]
    _store_rows(dk_ptr + packed, keys, heads * D, n, dk0, 0, D0, D)
    _store_rows(dv_ptr + packed, keys, heads * D, n, dv0, 0, D0, D)
    if D1 > 0:
        if EPS:
            dv1 += _vector_of(leaked_ptr, D0, D1, D)[None, :]
        _store_rows(dk_ptr + packed, keys, heads * D, n, dk1, D0, D1, D)
        _store_rows(dv_ptr + packed, keys, heads * D, n, dv1, D0, D1, D)
