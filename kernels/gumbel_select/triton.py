"""The selection in two launches and its gradient in one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lavit.kernels.triton_support import Variant, on_device_of, variant
from lavit.kernels.types import compute_dtype

# BLOCK_N, the next power of two of N, to warps: 4 patches a thread take about 70 registers, 8 take 128, and more than
# 4096 patches would not stay in the registers that a block of threads can have.
WARPS = {16: 1, 32: 1, 64: 1, 128: 1, 256: 2, 512: 4, 1024: 8, 2048: 16, 4096: 16}
SMALLEST, LARGEST = min(WARPS), max(WARPS)
SCAN = 1024
GRADIENT = 1024


@triton.jit
def _most_probable(margin, inside, wanted):
    """The ``wanted`` largest margins, at equality the first; NaN ranks as -inf and is never among the result.

    Bit by bit from the top, the largest threshold that ``wanted`` ranks reach; done early where just so many do.
    """
    number = margin == margin
    # The order of floats is that of their bits as integers, once negative ones are mirrored and -0 is 0.
    ranked = tl.where(number, margin, float("-inf"))
    bits = tl.where(ranked == 0, 0.0, ranked).to(tl.int64, bitcast=True)
    one = tl.full([], 1, tl.int64)
    lowest = one << 63
    rank = tl.where(inside, bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF), lowest)
    count = tl.sum((rank >= 0).to(tl.int32), axis=0)
    threshold = tl.where(count >= wanted, 0, lowest)
    count = tl.where(count >= wanted, count, rank.shape[0])
    bit = tl.full([], 62, tl.int64)
    while (bit >= 0) & (count != wanted):
        candidate = threshold | (one << bit)
        reaching = tl.sum((rank >= candidate).to(tl.int32), axis=0)
        threshold = tl.where(reaching >= wanted, candidate, threshold)
        count = tl.where(reaching >= wanted, reaching, count)
        bit -= 1
    above, tied = rank > threshold, rank == threshold
    room = wanted - tl.sum(above.to(tl.int32), axis=0)
    chosen = above | (tied & (tl.cumsum(tied.to(tl.int32), axis=0) <= room))
    return chosen & number & inside


# A patch: 8 bytes of scores in, keep, prob and order out (12), two logarithms and an exponential in float64 (about 150
# operations) and 40 integer multiplications of Philox. At B = N = 4096 that is 0.34 GB, 0.1 ms of an H100's memory, and
# as much of its float64 units; at B = 64, N = 256 the launch is all there is.
# Nothing is compiled for a particular number of patches or stride: rows start anywhere, and a thread takes a pair at a
# time, neighbours side by side.
@triton.jit(do_not_specialize=["num_patches", "min_keep"])
def _select(
    scores, noise, seeds, keep, prob, order, counts, num_patches, min_keep, tau: tl.float64, BLOCK_N: tl.constexpr
):
    """A program owns an image: its scores come in once, and everything of the image but its offset goes out."""
    image = tl.program_id(0).to(tl.int64)
    patch = tl.arange(0, BLOCK_N)
    inside = patch < num_patches
    row = image * num_patches
    pairs = patch[:, None] * 2 + tl.arange(0, 2)[None, :]
    precision: tl.constexpr = prob.dtype.element_ty
    s = tl.load(scores + row * 2 + pairs, mask=inside[:, None], other=0.0).to(precision)
    if noise is not None:
        s0, s1 = tl.split(s + tl.load(noise + row * 2 + pairs, mask=inside[:, None], other=0.0).to(precision))
        margin = (s0 - s1).to(tl.float64)
    else:
        s0, s1 = tl.split(s.to(tl.float64))
        margin = s0 - s1
    if seeds is not None:
        word, _, _, _ = tl.philox(tl.load(seeds + image), patch, 0, 0, 0)
        t = ((word >> 9) * 2 + 1).to(tl.int32)
        margin += tl.log(t.to(tl.float64)) - tl.log((16777216 - t).to(tl.float64))
        kept = inside & (margin > 0)
    else:
        kept = inside & (margin >= 0)
    count = tl.sum(kept.to(tl.int32), axis=0)
    if count < min_keep:
        kept = _most_probable(margin, inside, min_keep)
        count = tl.sum(kept.to(tl.int32), axis=0)
    tl.store(counts + image, count)
    tl.store(keep + row + patch, kept.to(precision), mask=inside)
    p = tl.where(margin == margin, 1 / (1 + tl.exp(-margin / tau)), 0.0)
    tl.store(prob + row + patch, p.to(precision), mask=inside)
    kept_so_far = tl.cumsum(kept.to(tl.int32), axis=0)
    place = tl.where(kept, kept_so_far - 1, count + patch - kept_so_far)
    tl.store(order + row + place, patch, mask=inside)


# 12 bytes an image: the launch is all there is.
@triton.jit(do_not_specialize=["batch", "num_patches"])
def _offsets(counts, cu_kept, cu_dropped, batch, num_patches, BLOCK: tl.constexpr):
    """One program owns both offset vectors and carries the sum from block to block of images."""
    tl.store(cu_kept, 0)
    tl.store(cu_dropped, 0)
    before = 0
    for start in range(0, batch, BLOCK):
        image = start + tl.arange(0, BLOCK)
        inside = image < batch
        count = tl.load(counts + image, mask=inside, other=0)
        kept = before + tl.cumsum(count, axis=0)
        tl.store(cu_kept + image + 1, kept, mask=inside)
        tl.store(cu_dropped + image + 1, (image + 1) * num_patches - kept, mask=inside)
        before += tl.sum(count, axis=0)


# A patch: two gradients and prob in, two gradients out, 20 bytes for 6 operations: 0.1 ms at B = N = 4096 on an H100.
@triton.jit(do_not_specialize=["num_patches", "keep_image", "keep_patch", "prob_image", "prob_patch"])
def _gradient(
    grad_keep, grad_prob, prob, grad_scores, num_patches, keep_image, keep_patch, prob_image, prob_patch,
    tau: tl.float64, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns a block of patches of one image. Gradients come with their strides: they are often expanded."""
    image = tl.program_id(0).to(tl.int64)
    patch = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = patch < num_patches
    p = tl.load(prob + image * num_patches + patch, mask=inside, other=0.0)
    g = tl.zeros_like(p)
    if grad_keep is not None:
        at = image * keep_image + patch.to(tl.int64) * keep_patch
        g += tl.load(grad_keep + at, mask=inside, other=0.0)
    if grad_prob is not None:
        at = image * prob_image + patch.to(tl.int64) * prob_patch
        g += tl.load(grad_prob + at, mask=inside, other=0.0)
    d = g * p * (1 - p)
    if p.dtype == tl.float64:
        d = d / tau
    else:
        d = tl.div_rn(d, tl.cast(tau, tl.float32))
    pairs = image * num_patches * 2 + patch[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(grad_scores + pairs, tl.join(d, -d).to(grad_scores.dtype.element_ty), mask=inside[:, None])


def can_take(x: Tensor) -> bool:
    """x: the scores or probabilities, of which a program takes a whole image."""
    return x.shape[1] <= LARGEST


def block_of(num_patches: int) -> int:
    return max(SMALLEST, triton.next_power_of_2(num_patches))


def registers(block: int) -> int:
    """What a thread may have: unasked, ptxas spills some so that two images fit on a multiprocessor."""
    return min(255, 65536 // (32 * WARPS[block]))


def gumbel_select(
    scores: Tensor, noise: Tensor | None, seeds: Tensor | None, tau: float, min_keep: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the reference; N at most LARGEST."""
    batch, num_patches, _ = scores.shape
    keep = scores.new_empty((batch, num_patches), dtype=compute_dtype(scores))
    prob = torch.empty_like(keep)
    order = scores.new_empty((batch, num_patches), dtype=torch.int32)
    if keep.numel() == 0:
        cu = scores.new_zeros(batch + 1, dtype=torch.int32)
        return keep, prob, order, cu, cu.clone()
    cu_kept = scores.new_empty((batch + 1,), dtype=torch.int32)
    cu_dropped = torch.empty_like(cu_kept)
    counts = scores.new_empty((batch,), dtype=torch.int32)
    scores = scores.contiguous()
    noise, seeds = (None if t is None else t.contiguous() for t in (noise, seeds))
    block = block_of(num_patches)
    with on_device_of(keep):
        _select[(batch,)](
            scores, noise, seeds, keep, prob, order, counts, num_patches, min_keep, tau, block,
            num_warps=WARPS[block], maxnreg=registers(block),
        )  # fmt: skip
        _offsets[(1,)](counts, cu_kept, cu_dropped, batch, num_patches, SCAN)
    return keep, prob, order, cu_kept, cu_dropped


def gumbel_select_backward(
    grad_keep: Tensor | None, grad_prob: Tensor | None, prob: Tensor, tau: float, dtype: torch.dtype
) -> Tensor:
    batch, num_patches = prob.shape
    grad_scores = prob.new_empty((batch, num_patches, 2), dtype=dtype)
    if prob.numel() == 0:
        return grad_scores
    block = min(GRADIENT, block_of(num_patches))
    keep_strides, prob_strides = ((0, 0) if g is None else g.stride() for g in (grad_keep, grad_prob))
    with on_device_of(prob):
        _gradient[(batch, triton.cdiv(num_patches, block))](
            grad_keep, grad_prob, prob.contiguous(), grad_scores,
            num_patches, *keep_strides, *prob_strides, tau, block, num_warps=WARPS[block],
        )  # fmt: skip
    return grad_scores


def variants(every: bool = False) -> list[Variant]:
    """Every block size with drawn noise in float32; the other kinds of noise and dtypes at the sizes that matter.
    every: at every size, and float16."""
    dtypes = ("fp32", "bf16", "fp64", *(("fp16",) if every else ()))
    out = [
        _variant_of_select(dtype, block, mode)
        for block in WARPS
        for dtype in dtypes
        for mode in ("seeds", "noise", "deterministic")
        if (dtype, mode) == ("fp32", "seeds") or every or block in (256, LARGEST)
    ]
    integers = {"counts": "*i32", "cu_kept": "*i32", "cu_dropped": "*i32"}
    out.append(variant(_offsets, f"offsets {SCAN}", integers, {"BLOCK": SCAN}))
    blocks = [block for block in WARPS if block <= GRADIENT] if every else [256, GRADIENT]
    return out + [_variant_of_gradient(dtype, block) for block in blocks for dtype in dtypes]


def _variant_of_select(dtype: str, block: int, mode: str) -> Variant:
    precision = "fp64" if dtype == "fp64" else "fp32"
    types = {"scores": f"*{dtype}", "noise": f"*{dtype}", "seeds": "*i64", "order": "*i32", "counts": "*i32"}
    types |= {"keep": f"*{precision}", "prob": f"*{precision}", "tau": "fp64"}
    constants = {"BLOCK_N": block, **{name: None for name in ("noise", "seeds") if name != mode}}
    others = {"num_warps": WARPS[block], "maxnreg": registers(block)}
    return variant(_select, f"{dtype} {mode} {block}", types, constants, **others)


def _variant_of_gradient(dtype: str, block: int) -> Variant:
    types = dict.fromkeys(("grad_keep", "grad_prob", "prob"), "*fp64" if dtype == "fp64" else "*fp32")
    types |= {"grad_scores": f"*{dtype}", "tau": "fp64"}
    return variant(_gradient, f"gradient {dtype} {block}", types, {"BLOCK_N": block}, num_warps=WARPS[block])
