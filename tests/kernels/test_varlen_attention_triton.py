"""What is special about the form by tiles: its rounding, its division of columns, its blocks, and where it steps aside.
The laws that every implementation obeys are in test_varlen_attention.py."""

import pytest
import torch
from packed import inputs, offsets, run, truth_and_bounds
from usable import gpu_waits, skip_unless_usable

from lavit.kernels import varlen_attention
from lavit.kernels.varlen_attention.library import OPERATION

# One, no and many tokens; more than one block of queries and of keys, neither full.
QUERIES, KEYS = [1, 37, 0, 2], [3, 35, 4, 0]


@pytest.fixture
def launcher(device, poisoned):
    """kernels/varlen_attention/triton.py, which can be imported only where triton is."""
    skip_unless_usable("varlen_attention", "triton", device)
    from lavit.kernels.varlen_attention import triton

    return triton


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
    following = next(name for name in OPERATION.preference[device.type] if name != "triton")
    for a, b in zip(run("triton", *case), run(following, *case), strict=True):
        assert torch.equal(a, b)


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
        with gpu_waits("error"):
            step()
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
