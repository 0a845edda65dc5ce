"""Attention within each image of a packed batch by tiles: the logits never leave the chip, forward nor backward.

A head's D columns are two parts, D0 and D1, both powers of two as tensor cores want them: LaVIT's 88 are 64 + 32, of
which 8 are filled with zeros, where a single part would fill 40. D1 is 0 where one part is enough.

A program owns a block of rows of one image in one head, and its place in the launch says which: heads are neighbours,
since they share the rows' memory. Images have different numbers of blocks: a program beyond its image's ends at once.
One image more than there are stands for the rows beyond the last offset, which get zeros.
Row strides come divided by 8, so that the compiler knows them, and what it loads, to be aligned.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LARGEST_EXPONENT = tl.constexpr(64.0)  # as in reference.py, in powers of two

FORWARD_INTEGERS = ["heads", "blocks", "images", "total_q", "total_k", "q_row", "k_row", "v_row"]
BACKWARD_INTEGERS = [*FORWARD_INTEGERS, "g_row"]


@triton.jit
def _owned(heads, blocks):
    pid = tl.program_id(0)
    return pid % heads, pid // heads % blocks, pid // heads // blocks


@triton.jit
def _offset(cu_ptr, image, total):
    """Within the rows that there are, whatever the offsets hold."""
    return tl.minimum(tl.maximum(tl.load(cu_ptr + image), 0), total)


@triton.jit
def _image(cu_ptr, image, total):
    """First row and number of rows, below 0 where offsets fall."""
    first = _offset(cu_ptr, image, total)
    return first, _offset(cu_ptr, image + 1, total) - first


@triton.jit
def _at(ptr, row, stride):
    """Where a row begins, in 64 bits; within the block that begins there, 32 are enough."""
    return ptr + tl.cast(row, tl.int64) * stride


@triton.jit
def _load(ptr, stride, inside, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """Columns FIRST.. of the rows of a block that begins at ptr; zeros beyond column D and where not inside."""
    d = FIRST + tl.arange(0, WIDTH)
    mask = inside[:, None]
    if FIRST + WIDTH > D:
        mask = mask & (d < D)[None, :]
    return tl.load(ptr + tl.arange(0, inside.shape[0])[:, None] * stride + d[None, :], mask=mask, other=0.0)


@triton.jit
def _store(ptr, stride, inside, x, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    d = FIRST + tl.arange(0, WIDTH)
    mask = inside[:, None]
    if FIRST + WIDTH > D:
        mask = mask & (d < D)[None, :]
    at = tl.arange(0, inside.shape[0])[:, None] * stride + d[None, :]
    tl.store(ptr + at, x.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _dot(a, b):
    """Tensor cores for 16 bits; float32 in float32's own precision."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _add_dot(a, b, c):
    return tl.dot(a, b, c, input_precision="ieee")


@triton.jit
def _log2_weight(w):
    """-inf for 0; NaN, as the definition's, for what is no weight."""
    removed = w == 0
    return tl.where(removed, float("-inf"), tl.log2(tl.where(removed, 1.0, w)))


@triton.jit
def _exp2_up_to(largest, x):
    """2^min(x, largest). NaN stays NaN, where tl.minimum alone would take the other."""
    return tl.exp2(tl.minimum(x, largest, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _clear(ptr, first, total, block, blocks, stride, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
           ROWS: tl.constexpr):  # fmt: skip
    """Zeros in the rows first..total - 1 of a head, shared among its ``blocks`` programs."""
    for start in range(first + block * ROWS, total, blocks * ROWS):
        inside = tl.arange(0, ROWS) < total - start
        _store(_at(ptr, start, stride), stride, inside, tl.zeros((ROWS, D0), tl.float32), 0, D0, D)
        if D1 > 0:
            _store(_at(ptr, start, stride), stride, inside, tl.zeros((ROWS, D1), tl.float32), D0, D1, D)


@triton.jit
def _fill(ptr, value, first, total, block, blocks, stride, ROWS: tl.constexpr):
    """``value`` in the rows first..total - 1 of one column."""
    row = tl.arange(0, ROWS)
    for start in range(first + block * ROWS, total, blocks * ROWS):
        tl.store(
            _at(ptr, start, stride) + row * stride, tl.zeros((ROWS,), tl.float32) + value, mask=row < total - start
        )


# B = 64, N = 256, H = 16, D = 88, bfloat16, a third kept: 5440 queries and as many causal or 10944 other keys. That is
# 61 or 92 MB in and out, 18 or 28 us of an H100's memory, for 2 (4 in whole blocks) or 5 GFLOP: 5 to 10 us.
@triton.jit(do_not_specialize=FORWARD_INTEGERS)
def forward_kernel(
    q, k, v, weight, cu_q, cu_k, out, lse,
    heads, blocks, images, total_q, total_k, q_row, k_row, v_row, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_M queries. They stay; keys and values of the image pass by, BLOCK_N at a time, under a
    running maximum and sum; out and lse go out once."""
    head, block, image = _owned(heads, blocks)
    q += head * D
    k += head * D
    v += head * D
    out += head * D
    lse += head
    q_row, k_row, v_row, out_row = q_row * 8, k_row * 8, v_row * 8, heads * D
    if image == images:
        end = _offset(cu_q, images, total_q)
        _clear(out, end, total_q, block, blocks, out_row, D, D0, D1, BLOCK_M)
        _fill(lse, float("inf"), end, total_q, block, blocks, heads, BLOCK_M)
        return
    first_q, n = _image(cu_q, image, total_q)
    if block * BLOCK_M >= n:
        return
    first_k, end_k = _image(cu_k, image, total_k)
    row = tl.arange(0, BLOCK_M)
    begin = block * BLOCK_M
    inside = row < n - begin
    first_q += begin
    q = _at(q, first_q, q_row)
    q0 = _load(q, q_row, inside, 0, D0, D)
    acc0 = tl.zeros((BLOCK_M, D0), tl.float32)
    if D1 > 0:
        q1 = _load(q, q_row, inside, D0, D1, D)
        acc1 = tl.zeros((BLOCK_M, D1), tl.float32)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    if CAUSAL:
        end_k = tl.minimum(end_k, begin + BLOCK_M)
    key = tl.arange(0, BLOCK_N)
    for start in range(0, end_k, BLOCK_N):
        there = key < end_k - start
        k_block, v_block = _at(k, first_k + start, k_row), _at(v, first_k + start, v_row)
        s = _dot(q0, tl.trans(_load(k_block, k_row, there, 0, D0, D)))
        if D1 > 0:
            s = _add_dot(q1, tl.trans(_load(k_block, k_row, there, D0, D1, D)), s)
        s = s * (scale * LOG2_E)
        if weight is not None:
            s += _log2_weight(tl.load(weight + first_k + start + key, mask=there, other=0.0).to(tl.float32))[None, :]
        seen = there[None, :]
        if CAUSAL:
            seen = seen & (key[None, :] - row[:, None] <= begin - start)
        s = tl.where(seen, s, float("-inf"))
        larger = tl.maximum(largest, tl.max(s, axis=1))
        # Where nothing is seen yet, 0 in place of -inf: no NaN from -inf - -inf.
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        p = tl.exp2(s - shift[:, None])
        shrink = tl.exp2(largest - shift)
        largest = larger
        total = total * shrink + tl.sum(p, axis=1)
        p = p.to(v.dtype.element_ty)
        acc0 = _add_dot(p, _load(v_block, v_row, there, 0, D0, D), acc0 * shrink[:, None])
        if D1 > 0:
            acc1 = _add_dot(p, _load(v_block, v_row, there, D0, D1, D), acc1 * shrink[:, None])
    alive = total != 0  # NaN, too
    divisor = tl.where(alive, total, 1.0)
    out = _at(out, first_q, out_row)
    _store(out, out_row, inside, acc0 / divisor[:, None], 0, D0, D)
    if D1 > 0:
        _store(out, out_row, inside, acc1 / divisor[:, None], D0, D1, D)
    log_total = tl.where(alive, (largest + tl.log2(divisor)) * LN_2, float("inf"))
    tl.store(_at(lse, first_q, heads) + row * heads, log_total, mask=inside)


# q, k, v, out and the gradient in, dq out, 6 times 15 MB if causal: 28 us of an H100's memory; 3 products, 8 GFLOP in
# whole blocks. Across, 122 MB, 36 us, and 8 GFLOP.
@triton.jit(do_not_specialize=BACKWARD_INTEGERS)
def backward_queries_kernel(
    grad, q, k, v, weight, out, lse, cu_q, cu_k, delta, dq,
    heads, blocks, images, total_q, total_k, g_row, q_row, k_row, v_row, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_M queries: delta = g . out, which the other kernel reads too, then dq, with the weights
    computed again from lse while keys and values pass by."""
    head, block, image = _owned(heads, blocks)
    grad += head * D
    q += head * D
    k += head * D
    v += head * D
    out += head * D
    dq += head * D
    g_row, q_row, k_row, v_row, out_row = g_row * 8, q_row * 8, k_row * 8, v_row * 8, heads * D
    if image == images:
        _clear(dq, _offset(cu_q, images, total_q), total_q, block, blocks, out_row, D, D0, D1, BLOCK_M)
        return
    first_q, n = _image(cu_q, image, total_q)
    if block * BLOCK_M >= n:
        return
    first_k, end_k = _image(cu_k, image, total_k)
    row = tl.arange(0, BLOCK_M)
    begin = block * BLOCK_M
    inside = row < n - begin
    first_q += begin
    grad, q, out = _at(grad, first_q, g_row), _at(q, first_q, q_row), _at(out, first_q, out_row)
    q0 = _load(q, q_row, inside, 0, D0, D)
    g0 = _load(grad, g_row, inside, 0, D0, D)
    along = tl.sum(g0.to(tl.float32) * _load(out, out_row, inside, 0, D0, D).to(tl.float32), axis=1)
    acc0 = tl.zeros((BLOCK_M, D0), tl.float32)
    if D1 > 0:
        q1 = _load(q, q_row, inside, D0, D1, D)
        g1 = _load(grad, g_row, inside, D0, D1, D)
        along += tl.sum(g1.to(tl.float32) * _load(out, out_row, inside, D0, D1, D).to(tl.float32), axis=1)
        acc1 = tl.zeros((BLOCK_M, D1), tl.float32)
    tl.store(_at(delta + head, first_q, heads) + row * heads, along, mask=inside)
    log2_total = tl.load(_at(lse + head, first_q, heads) + row * heads, mask=inside, other=float("inf")) * LOG2_E
    if CAUSAL:
        end_k = tl.minimum(end_k, begin + BLOCK_M)
    key = tl.arange(0, BLOCK_N)
    for start in range(0, end_k, BLOCK_N):
        there = key < end_k - start
        k_block, v_block = _at(k, first_k + start, k_row), _at(v, first_k + start, v_row)
        k0 = _load(k_block, k_row, there, 0, D0, D)
        s = _dot(q0, tl.trans(k0))
        d = _dot(g0, tl.trans(_load(v_block, v_row, there, 0, D0, D)))
        if D1 > 0:
            k1 = _load(k_block, k_row, there, D0, D1, D)
            s = _add_dot(q1, tl.trans(k1), s)
            d = _add_dot(g1, tl.trans(_load(v_block, v_row, there, D0, D1, D)), d)
        exponent = s * (scale * LOG2_E) - log2_total[:, None]
        if weight is not None:
            w = tl.load(weight + first_k + start + key, mask=there, other=0.0).to(tl.float32)
            exponent += _log2_weight(w)[None, :]
        seen = there[None, :]
        if CAUSAL:
            seen = seen & (key[None, :] - row[:, None] <= begin - start)
        # Scaled before it is rounded: float16 ends at 65504.
        ds = tl.where(seen, _exp2_up_to(0.0, exponent) * ((d - along[:, None]) * scale), 0.0)
        ds = ds.to(k.dtype.element_ty)
        acc0 = _add_dot(ds, k0, acc0)
        if D1 > 0:
            acc1 = _add_dot(ds, k1, acc1)
    dq = _at(dq, first_q, out_row)
    _store(dq, out_row, inside, acc0, 0, D0, D)
    if D1 > 0:
        _store(dq, out_row, inside, acc1, D0, D1, D)


# q, k, v and the gradient in, dk and dv out: 28 us of an H100's memory if causal, 46 us across; 4 products.
@triton.jit(do_not_specialize=BACKWARD_INTEGERS)
def backward_keys_kernel(
    grad, q, k, v, weight, lse, delta, cu_q, cu_k, dk, dv, dw,
    heads, blocks, images, total_q, total_k, g_row, q_row, k_row, v_row, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_N keys with their values. They stay; the queries that see them pass by with their
    gradients, BLOCK_M at a time; dk, dv and, (H, Tk) by head, dw go out once: sums in one order, no atomics."""
    head, block, image = _owned(heads, blocks)
    grad += head * D
    q += head * D
    k += head * D
    v += head * D
    dk += head * D
    dv += head * D
    lse += head
    delta += head
    g_row, q_row, k_row, v_row, out_row = g_row * 8, q_row * 8, k_row * 8, v_row * 8, heads * D
    if weight is not None:
        dw += head.to(tl.int64) * total_k
    if image == images:
        end = _offset(cu_k, images, total_k)
        _clear(dk, end, total_k, block, blocks, out_row, D, D0, D1, BLOCK_N)
        _clear(dv, end, total_k, block, blocks, out_row, D, D0, D1, BLOCK_N)
        if weight is not None:
            _fill(dw, 0.0, end, total_k, block, blocks, 1, BLOCK_N)
        return
    first_k, m = _image(cu_k, image, total_k)
    if block * BLOCK_N >= m:
        return
    first_q, n = _image(cu_q, image, total_q)
    key = tl.arange(0, BLOCK_N)
    begin = block * BLOCK_N
    there = key < m - begin
    first_k += begin
    k, v = _at(k, first_k, k_row), _at(v, first_k, v_row)
    k0 = _load(k, k_row, there, 0, D0, D)
    v0 = _load(v, v_row, there, 0, D0, D)
    dk0 = tl.zeros((BLOCK_N, D0), tl.float32)
    dv0 = tl.zeros((BLOCK_N, D0), tl.float32)
    if D1 > 0:
        k1 = _load(k, k_row, there, D0, D1, D)
        v1 = _load(v, v_row, there, D0, D1, D)
        dk1 = tl.zeros((BLOCK_N, D1), tl.float32)
        dv1 = tl.zeros((BLOCK_N, D1), tl.float32)
    if weight is not None:
        log2_weight = _log2_weight(tl.load(weight + first_k + key, mask=there, other=0.0).to(tl.float32))[:, None]
        dw_sum = tl.zeros((BLOCK_N,), tl.float32)
    row = tl.arange(0, BLOCK_M)
    first_seen = 0
    if CAUSAL:
        first_seen = begin // BLOCK_M * BLOCK_M
    for start in range(first_seen, n, BLOCK_M):
        inside = row < n - start
        q_block, g_block = _at(q, first_q + start, q_row), _at(grad, first_q + start, g_row)
        lse_at, delta_at = _at(lse, first_q + start, heads), _at(delta, first_q + start, heads)
        log2_total = tl.load(lse_at + row * heads, mask=inside, other=float("inf")) * LOG2_E
        along = tl.load(delta_at + row * heads, mask=inside, other=0.0)
        q0 = _load(q_block, q_row, inside, 0, D0, D)
        s = _dot(k0, tl.trans(q0))
        if D1 > 0:
            q1 = _load(q_block, q_row, inside, D0, D1, D)
            s = _add_dot(k1, tl.trans(q1), s)
        exponent = s * (scale * LOG2_E) - log2_total[None, :]
        if CAUSAL:
            exponent = tl.where(key[:, None] - row[None, :] <= start - begin, exponent, float("-inf"))
        if weight is not None:
            p = _exp2_up_to(0.0, exponent + log2_weight)
        else:
            p = _exp2_up_to(0.0, exponent)
        g0 = _load(g_block, g_row, inside, 0, D0, D)
        dv0 = _add_dot(p.to(grad.dtype.element_ty), g0, dv0)
        d = _dot(v0, tl.trans(g0))
        if D1 > 0:
            g1 = _load(g_block, g_row, inside, D0, D1, D)
            dv1 = _add_dot(p.to(grad.dtype.element_ty), g1, dv1)
            d = _add_dot(v1, tl.trans(g1), d)
        d -= along[None, :]
        if weight is not None:
            dw_sum += tl.sum(_exp2_up_to(LARGEST_EXPONENT, exponent) * d, axis=1)
        ds = (p * (d * scale)).to(q.dtype.element_ty)
        dk0 = _add_dot(ds, q0, dk0)
        if D1 > 0:
            dk1 = _add_dot(ds, q1, dk1)
    dk, dv = _at(dk, first_k, out_row), _at(dv, first_k, out_row)
    _store(dv, out_row, there, dv0, 0, D0, D)
    _store(dk, out_row, there, dk0, 0, D0, D)
    if D1 > 0:
        _store(dv, out_row, there, dv1, D0, D1, D)
        _store(dk, out_row, there, dk1, D0, D1, D)
    if weight is not None:
        tl.store(dw + first_k + key, dw_sum, mask=there)
