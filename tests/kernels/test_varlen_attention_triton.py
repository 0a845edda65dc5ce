"""What is special about the form by tiles: its rounding, its division of columns, its blocks, and where it steps aside.
The laws that every implementation obeys are in test_varlen_attention.py. And how flash-attn is called."""

import sys
from types import SimpleNamespace

import pytest
import torch
from usable import skip_unless_usable

from lavit.kernels import varlen_attention
from lavit.kernels.dispatch import Implementation, _choose
from lavit.kernels.varlen_attention import reference
from lavit.kernels.varlen_attention.library import OPERATION

# One, no and many tokens; more than one block of queries and of keys, neither full.
QUERIES, KEYS = [1, 37, 0, 2], [3, 35, 4, 0]
UNIT = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@pytest.fixture
def launcher(device, poisoned):
    """kernels/varlen_attention/triton.py, which can be imported only where triton is."""
    skip_unless_usable("varlen_attention", "triton", device)
    from lavit.kernels.varlen_attention import triton

    return triton


def offsets(lengths, device):
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


def inputs(lengths_q, lengths_k, dim, dtype, device, heads=1, spare=3, seed=0):
    """q, k, v, a gradient and weights of keys (0, 1 and between), with unused rows at the end."""
    generator = torch.Generator().manual_seed(seed)
    rows = [sum(lengths_q) + spare, sum(lengths_k) + spare]
    q, k, v, g = (torch.randn(rows[i], heads, dim, generator=generator).to(device, dtype) for i in (0, 1, 1, 0))
    u = torch.rand(rows[1], generator=generator).to(device)
    return q, k, v, g, torch.where(u < 0.3, 0, torch.where(u > 0.6, 1, u))


def run(impl, q, k, v, g, w, lengths_q, lengths_k, causal=False):
    """out, dq, dk, dv and, with weights, dw."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v) + (() if w is None else (w,))]
    settings = offsets(lengths_q, q.device), offsets(lengths_k, q.device), max(lengths_q), max(lengths_k)
    weight = None if w is None else leaves[3]
    out = varlen_attention(*leaves[:3], *settings, causal=causal, key_weight=weight, impl=impl)
    return out.detach(), *torch.autograd.grad(out, leaves, g)


def truth_and_bounds(q, k, v, g, w, lengths_q, lengths_k, causal):
    """The definition in float64, and what rounding may add to each element.

    u = 2^-24 is float32's unit, h that of the 16 bits to which p, ds and the results are rounded (0 for float32), and
    2^-25 half the spacing of float16's smallest numbers. A sum of n terms errs by at most (n + 2) u of the sum of
    magnitudes, exp2 and log2 by 4 u; an exponent's error is the relative error of what it is the exponent of.
    """
    u, h = 2.0**-24, UNIT[q.dtype]
    tiny = 2.0**-25 if q.dtype == torch.float16 else 0.0
    q, k, v, g = (x.double().cpu() for x in (q, k, v, g))
    heads, dim = q.shape[1:]
    scale = dim**-0.5
    weighted = w is not None
    w = w.double().cpu() if weighted else q.new_ones(k.shape[0])
    cu = offsets(lengths_q, "cpu"), offsets(lengths_k, "cpu")
    out, lse = reference.varlen_attention(q, k, v, *cu, w, 0, 0, causal, scale)
    exact = [out, *reference.varlen_attention_backward(g, q, k, v, out, lse, *cu, w, 0, 0, causal, scale)]
    bounds = [torch.zeros_like(x) for x in exact]
    for i, j in reference.images(*cu):
        n, m = i.stop - i.start, j.stop - j.start
        qa, ka, va, ga = q[i].abs(), k[j].abs(), v[j].abs(), g[i].abs()
        s = reference.logits(q[i], k[j], None, causal, scale)
        total = lse[i].T[..., None]
        ratio = (s - total).exp()
        p = ratio * w[j]
        size = scale * torch.einsum("ihd,jhd->hij", qa, ka)
        seen = torch.where(s > -torch.inf, size, 0)
        shift = seen.amax(-1, keepdim=True) if m else seen.new_zeros(heads, n, 1)
        finite = torch.where(total < torch.inf, total, 0).abs()
        # s and lse, each in its own error, and the roundings of p itself.
        r = ((dim + 8) * u * (seen + shift) + 4 * u * finite + (m + 16) * u).expm1()
        pr = p * (r + h)
        bounds[0][i] = torch.einsum("hij,jhd->ihd", pr + m * u * p + tiny, va) + (h * out[i].abs() + tiny)
        d = torch.einsum("ihd,jhd->hij", g[i], v[j]) - torch.einsum("ihd,ihd->hi", g[i], out[i])[..., None]
        e = (dim + 2) * u * torch.einsum("ihd,jhd->hij", ga, va)
        e = e + torch.einsum("ihd,ihd->hi", ga, bounds[0][i] + (dim + 2) * u * out[i].abs())[..., None]
        error = p * ((r + h) * d.abs() + (1 + r + h) * e)
        bounds[1][i] = scale * torch.einsum("hij,jhd->ihd", error + m * u * p * d.abs() + tiny, ka)
        bounds[2][j] = scale * torch.einsum("hij,ihd->jhd", error + n * u * p * d.abs() + tiny, qa)
        bounds[3][j] = torch.einsum("hij,ihd->jhd", pr + n * u * p + tiny, ga)
        bounds[4][j] = (ratio * (r * d.abs() + (1 + r) * e + (n * heads + 2) * u * d.abs())).sum((0, 1))
    for x, bound in zip(exact[1:4], bounds[1:4], strict=True):
        bound += h * x.abs() + tiny
    return list(zip(exact, bounds, strict=True))[: 4 + weighted]


CASES = [
    (16, True, False),
    (24, False, True),
    (40, True, True),
    (88, False, False),
    (88, False, True),
    (88, True, True),
    (128, True, False),
]
BFLOAT16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)  # the interpreter's bfloat16 products are wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BFLOAT16])
@pytest.mark.parametrize(("dim", "causal", "weighted"), CASES)
def test_every_element_is_right_within_its_rounding(launcher, device, dtype, dim, causal, weighted):
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("bfloat16 products are tested on a GPU")
    lengths_q = KEYS if causal else QUERIES
    q, k, v, g, w = inputs(lengths_q, KEYS, dim, dtype, device)
    case = (q, k, v, g, w if weighted else None, lengths_q, KEYS, causal)
    for got, (exact, bound) in zip(run("triton", *case), truth_and_bounds(*case), strict=True):
        assert bool(((got.double().cpu() - exact).abs() <= bound).all())


def test_the_bounds_are_tight_enough_to_notice_a_wrong_key(device):
    """One key of 35 left out of one query moves that query's result by more than any float32 or float16 rounding."""
    for dtype in (torch.float32, torch.float16):
        q, k, v, g, w = inputs([5], [35], 88, dtype, "cpu", spare=0)
        w = torch.ones_like(w)
        exact, bound = truth_and_bounds(q, k, v, g, w, [5], [35], False)[0]
        w[3] = 0
        other, _ = truth_and_bounds(q, k, v, g, w, [5], [35], False)[0]
        assert float(((other - exact).abs() / bound).amax((1, 2)).min()) > 1


def test_strided_inputs_and_an_expanded_gradient_give_the_same_bits(launcher, device):
    """q, k and v as the merger has them, parts of one product; a gradient as sum() leaves it; views as offsets."""
    product = torch.randn(40, 3, 2, 24, generator=torch.Generator().manual_seed(1)).to(device)
    q, k, v = product.unbind(1)
    cu = offsets([33, 5], device)
    results = []
    for wrap in (lambda x: x, torch.Tensor.contiguous):
        leaves = [wrap(x).detach().requires_grad_() for x in (q, k, v)]
        offset = torch.stack((cu, cu), 1)[:, 0] if not results else cu
        out = varlen_attention(*leaves, offset, offset, 33, 33, causal=True, impl="triton")
        results.append(
            [out, *torch.autograd.grad(out, leaves, wrap(torch.ones(1, 1, 1, device=device).expand_as(out)))]
        )
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert not launcher.rows_of_heads(q).is_contiguous()


@pytest.mark.parametrize(("lengths_q", "lengths_k"), [([2], [1]), ([0], [3]), ([], [])])
def test_all_unused_rows_are_zeros_however_many(launcher, device, lengths_q, lengths_k):
    """Far more than the blocks of the bounds hold; and no images at all."""
    q, k, v, g, w = inputs(lengths_q, lengths_k, 16, torch.float32, device, spare=150)
    leaves = [x.requires_grad_() for x in (q, k, v, w)]
    cu = offsets(lengths_q, device), offsets(lengths_k, device)
    out = varlen_attention(*leaves[:3], *cu, sum(lengths_q), sum(lengths_k), key_weight=w, impl="triton")
    dq, dk, dv, dw = torch.autograd.grad(out, leaves, g)
    assert not out[sum(lengths_q) :].any() and not dq[sum(lengths_q) :].any()
    assert not any(x[sum(lengths_k) :].any() for x in (dk, dv, dw))


def test_columns_are_divided_into_two_parts_with_few_to_spare(launcher):
    widths = {dim: launcher.column_parts(dim) for dim in range(8, launcher.LARGEST + 1, 8)}
    assert [widths[d] for d in (16, 24, 40, 80, 88, 128, 160, 192, 256)] == [
        (16, 0), (32, 0), (32, 16), (64, 16), (64, 32), (128, 0), (128, 32), (128, 64), (256, 0)
    ]  # fmt: skip
    for dim, (first, second) in widths.items():
        assert dim <= first + second <= max(16, dim * 4 / 3) + 8
        assert first in (16, 32, 64, 128, 256) and second in (0, 16, 32, 64)


@pytest.mark.parametrize(("dtype", "dim"), [(torch.float64, 16), (torch.float32, 12), (torch.float32, 264)])
def test_steps_aside_for_what_it_has_no_tiles_for(launcher, device, dtype, dim):
    q, k, v, g, w = inputs([3, 2], [4, 1], dim, dtype, device)
    case = (q, k, v, g, w.to(dtype), [3, 2], [4, 1])
    for a, b in zip(run("triton", *case), run("sdpa", *case), strict=True):
        assert torch.equal(a, b)


def test_every_argument_of_a_kernel_is_in_its_variants(launcher):
    for variant in launcher.variants():
        assert set(variant.signature) | set(variant.constants) == set(variant.kernel.arg_names)


class _Package(torch.autograd.Function):
    """flash_attn_varlen_func as far as it matters here: differentiable, and garbage in unused rows."""

    calls: list = []

    @staticmethod
    def forward(ctx, q, k, v, cu_q, cu_k, max_q, max_k, scale, causal):
        _Package.calls.append((max_q, max_k, scale, causal))
        out, lse = reference.varlen_attention(q, k, v, cu_q, cu_k, None, max_q, max_k, causal, scale)
        ctx.save_for_backward(q, k, v, out, lse, cu_q, cu_k)
        ctx.settings = None, max_q, max_k, causal, scale
        return torch.where(torch.arange(len(q))[:, None, None] < cu_q[-1], out, torch.nan)

    @staticmethod
    def backward(ctx, grad):
        grads = reference.varlen_attention_backward(grad, *ctx.saved_tensors, *ctx.settings)
        ends = ctx.saved_tensors[-2][-1], ctx.saved_tensors[-1][-1], ctx.saved_tensors[-1][-1]
        return *(
            torch.where(torch.arange(len(x))[:, None, None] < end, x, torch.nan)
            for x, end in zip(grads, ends, strict=False)
        ), *[None] * 6  # fmt: skip


@pytest.fixture
def package(monkeypatch):
    """A flash_attn that runs here."""

    def flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, *, softmax_scale, causal):
        return _Package.apply(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale, causal)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func))
    monkeypatch.setitem(OPERATION.implementations, "flash_attn", Implementation("flash_attn", "a stand-in"))
    _Package.calls.clear()
    _choose.cache_clear()
    yield _Package.calls
    _choose.cache_clear()


@pytest.mark.parametrize("causal", [True, False])
def test_flash_attn_gets_the_arguments_and_its_unused_rows_are_cleared(package, causal):
    lengths_q = KEYS if causal else QUERIES
    q, k, v, g, _ = inputs(lengths_q, KEYS, 16, torch.float16, torch.device("cpu"))
    case = (q, k, v, g, None, lengths_q, KEYS, causal)
    for got, expected in zip(run("flash_attn", *case), run("reference", *case), strict=True):
        assert torch.equal(got, expected)
    assert package == [(max(lengths_q), 35, 0.25, causal)] * 2


def test_flash_attn_refuses_what_it_lacks(package):
    q, k, v, _, w = inputs([2], [3], 16, torch.float32, torch.device("cpu"))
    cu = offsets([2], "cpu"), offsets([3], "cpu"), 2, 3
    with pytest.raises(ValueError, match="q: flash_attn needs float16 or bfloat16, got torch.float32"):
        varlen_attention(q, k, v, *cu, impl="flash_attn")
    q, k, v = q.half(), k.half(), v.half()
    with pytest.raises(ValueError, match="key_weight: flash_attn has no weights of keys"):
        varlen_attention(q, k, v, *cu, key_weight=w, impl="flash_attn")
    with pytest.raises(ValueError, match="multiple of 8, got 15"):
        varlen_attention(q[..., 1:], k[..., 1:], v[..., 1:], *cu, impl="flash_attn")


def test_flash_attn_says_why_it_cannot_run():
    with pytest.raises(RuntimeError, match="varlen_attention cannot run 'flash_attn' on cpu: flash-attn needs a GPU"):
        OPERATION.choose("flash_attn", "cpu")
    assert "flash_attn" not in {name for names in OPERATION.preference.values() for name in names}


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [True, False])
def test_agrees_with_flash_attn(causal):
    skip_unless_usable("varlen_attention", "flash_attn", torch.device("cuda"))
    lengths_q = [85, 1, 300, 64] if not causal else [171, 3, 129, 64]
    lengths_k = [171, 3, 129, 64]
    q, k, v, g, _ = inputs(lengths_q, lengths_k, 88, torch.bfloat16, "cuda", heads=2)
    case = (q, k, v, g, None, lengths_q, lengths_k, causal)
    for got, (exact, bound) in zip(run("flash_attn", *case), truth_and_bounds(*case), strict=True):
        assert bool(((got.double().cpu() - exact).abs() <= 2 * bound).all())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("causal", [True, False])
def test_long_images(dtype, causal):
    """4096 tokens of an image: 64 blocks in each direction."""
    q, k, v, g, w = inputs([4096, 77], [4096, 77], 88, dtype, "cuda")
    case = (q, k, v, g, w, [4096, 77], [4096, 77], causal)
    for got, (exact, bound) in zip(run("triton", *case), truth_and_bounds(*case), strict=True):
        assert bool(((got.double().cpu() - exact).abs() <= bound).all())


@pytest.mark.gpu
def test_runs_in_a_cuda_graph_without_waiting_for_the_device():
    """Forward and backward; the recording serves other contents and other lengths within the same bounds."""
    q, k, v, g, w = inputs([85, 20], [171, 236], 88, torch.bfloat16, "cuda", heads=2, spare=0)
    leaves = [x.requires_grad_() for x in (q, k, v, w)]
    cu_q, cu_k = offsets([85, 20], "cuda"), offsets([171, 236], "cuda")

    def step():
        out = varlen_attention(*leaves[:3], cu_q, cu_k, 256, 256, key_weight=leaves[3], impl="triton")
        return out, *torch.autograd.grad(out, leaves, g)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = step()
    for lengths_q, lengths_k in (([85, 20], [171, 236]), ([3, 99], [200, 5])):
        cu_q.copy_(offsets(lengths_q, "cuda"))
        cu_k.copy_(offsets(lengths_k, "cuda"))
        with torch.no_grad():
            q.mul_(0.5)
        graph.replay()
        torch.cuda.synchronize()
        for a, b in zip(captured, step(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.gpu
def test_other_lengths_batches_and_heads_compile_nothing():
    from lavit.kernels.varlen_attention.triton_kernels import (
        backward_keys_kernel,
        backward_queries_kernel,
        forward_kernel,
    )

    kernels = (forward_kernel, backward_queries_kernel, backward_keys_kernel)
    compiled = lambda: [len(x.device_caches[torch.cuda.current_device()][0]) for x in kernels]  # noqa: E731
    before = None
    for lengths_q, lengths_k, heads in (
        ([85, 20], [171, 236], 2),
        ([1], [1], 1),
        ([16] * 16, [16] * 16, 16),
        ([0, 3], [7, 0], 3),
    ):
        q, k, v, g, w = inputs(lengths_q, lengths_k, 88, torch.bfloat16, "cuda", heads=heads)
        run("triton", q, k, v, g, w, lengths_q, lengths_k)
        before = before or compiled()
    assert compiled() == before
