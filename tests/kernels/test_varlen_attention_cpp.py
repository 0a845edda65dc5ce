"""What is particular to the compiled form: vectors of every width, blocks of queries, layouts, threads, arguments.
The laws that every implementation obeys are in test_varlen_attention.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import inputs, offsets, run, truth_and_bounds

from lavit.kernels import varlen_attention
from lavit.kernels.extension import cpp_unusable
from lavit.kernels.varlen_attention import cpp, reference
from lavit.threads import on as on_threads

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.skipif(cpp_unusable("cpu") is not None, reason=str(cpp_unusable("cpu"))),
]

# None, one and two vectors of queries, full and not; keys in eights and fours, and some left over.
QUERIES, KEYS = [1, 37, 0, 2, 16, 33, 70], [3, 35, 4, 0, 1, 21, 13]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def has_vectors_of(width: int) -> bool:
    x, cu = torch.zeros(0, 1, 1), torch.zeros(1, dtype=torch.int32)
    try:
        torch.ops.lavit_cpp.varlen_attention(x, x, x, cu, cu, None, False, 1.0, width)
    except RuntimeError:
        return False
    return True


@pytest.fixture(params=[16, 32, 64], scope="module", autouse=True)
def width(request: pytest.FixtureRequest) -> Iterator[int]:
    """Bytes of the vectors, as another machine would have."""
    if cpp_unusable("cpu") is None and not has_vectors_of(request.param):
        pytest.skip(f"this machine has no vectors of {request.param} bytes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpp, "VECTOR_BYTES", request.param)
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("dim", "causal", "weighted"),
    [(1, True, True), (24, False, False), (24, True, False), (32, False, True), (88, True, True), (88, False, False)],
)
def test_every_element_is_right_within_its_rounding(dtype, dim, causal, weighted):
    lengths_q = KEYS if causal else QUERIES
    q, k, v, g, w = inputs(lengths_q, KEYS, dim, dtype, "cpu", heads=2)
    case = (q, k, v, g, w if weighted else None, lengths_q, KEYS, causal)
    for got, (exact, bound) in zip(run("cpp", *case), truth_and_bounds(*case), strict=True):
        assert got.is_contiguous()
        assert bool(((got.double() - exact).abs() <= bound).all())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=5),
    st.integers(1, 3),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_sizes_in_float64_give_the_reference(lengths, heads, dim, causal, weighted, seed):
    """No rounding hides what is missing or twice; float64 has vectors of 16 bytes at every width."""
    lengths_k = [m for _, m in lengths] or [0]
    lengths_q = lengths_k if causal or not lengths else [n for n, _ in lengths]
    q, k, v, g, w = (x.double() for x in inputs(lengths_q, lengths_k, dim, torch.float32, "cpu", heads, 2, seed))
    case = (q, k, v, g, w if weighted else None, lengths_q, lengths_k, causal)
    for a, b in zip(run("cpp", *case), run("reference", *case), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_the_exponential_is_within_three_units_and_zero_where_nothing_is_left():
    """Two keys, one of logit 0 and value 0, one of logit x and value 1: e^x / (1 + e^x), x exact."""
    x = torch.cat((torch.linspace(-87, 0, 50_001), torch.tensor([-87.01, -100.0, -1e4, -1e30])))
    k = torch.stack((torch.zeros_like(x), x), 1).reshape(-1, 1, 1)
    v = torch.tensor([0.0, 1.0]).repeat(len(x)).reshape(-1, 1, 1)
    cu_q, cu_k = (torch.arange(len(x) + 1, dtype=torch.int32) * n for n in (1, 2))
    out = varlen_attention(torch.ones(len(x), 1, 1), k, v, cu_q, cu_k, 1, 2, impl="cpp")[:, 0, 0].double()
    seen = x >= -87
    exact = x.double().exp() / (1 + x.double().exp())
    # The exponential within 2 units of 2^-23, and a sum, an inverse and a product of half a unit each.
    assert float((out / exact - 1)[seen].abs().max()) <= 3.5 * 2**-23
    assert not out[~seen].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [True, False])
def test_every_memory_layout_gives_the_same_bits(dtype, causal):
    """Packed beside two others, heads outermost, columns outermost, rows and all repeated; offsets that are apart."""
    lengths_q = KEYS if causal else QUERIES
    total_q, total_k = sum(lengths_q), sum(KEYS)
    cu_q, cu_k = offsets(lengths_q, "cpu"), offsets(KEYS, "cpu")
    weight = torch.rand(total_k, 2)[:, 0]

    def layouts(rows: int) -> Iterator[torch.Tensor]:
        yield torch.randn(rows, 3, 2, 24)[:, 1].to(dtype)
        yield torch.randn(rows, 3, 2, 32).to(dtype)[:, 1]
        yield torch.randn(2, rows, 24).to(dtype).transpose(0, 1)
        yield torch.randn(24, rows, 2).to(dtype).permute(1, 2, 0)
        yield torch.randn(1, 2, 24).to(dtype).expand(rows, -1, -1)
        yield torch.randn(()).to(dtype).expand(rows, 2, 24)

    for case in zip(layouts(total_q), layouts(total_k), layouts(total_k), layouts(total_q), strict=True):
        results = []
        for wrap in (lambda x: x, torch.Tensor.contiguous):
            leaves = [wrap(x).detach().requires_grad_() for x in (*case[:3], weight)]
            ends = [torch.stack((cu, cu), 1)[:, 0] if not results else cu for cu in (cu_q, cu_k)]
            out = varlen_attention(*leaves[:3], *ends, 99, 99, causal=causal, key_weight=leaves[3], impl="cpp")
            results.append([out, *torch.autograd.grad(out, leaves, wrap(case[3]))])
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("causal", "weighted"), [(True, False), (False, True)])
def test_the_number_of_threads_changes_no_bit(dtype, causal, weighted):
    """Large enough for several threads, images of very different lengths; and all heads' parts of a weight's gradient
    in one order."""
    lengths = [150, 3, 0, 41, 9, 64]
    q, k, v, g, w = inputs(lengths, lengths, 40, dtype, "cpu", heads=5)
    results = []
    for number in (1, 2, 3, 7):
        with on_threads(number):
            results.append(run("cpp", q, k, v, g, w if weighted else None, lengths, lengths, causal))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("causal", [True, False])
def test_the_sum_kept_for_the_backward_is_the_references(causal):
    lengths_q = KEYS if causal else QUERIES
    q, k, v, _, w = inputs(lengths_q, KEYS, 24, torch.float32, "cpu", heads=2)
    ends = offsets(lengths_q, "cpu"), offsets(KEYS, "cpu")
    for weight in (None, w):
        exact_weight = None if weight is None else weight.double()
        got = cpp.varlen_attention(q, k, v, *ends, weight, 99, 99, causal, 0.2)
        exact = (x.double() for x in (q, k, v))
        expected = reference.varlen_attention(*exact, *ends, exact_weight, 99, 99, causal, 0.2)
        # Logits up to 10 of 24 products.
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def arguments(**change):
    x, cu = torch.zeros(5, 2, 8), torch.tensor([0, 2, 5], dtype=torch.int32)
    given = {"q": x, "k": x, "v": x, "cu_q": cu, "cu_k": cu, "key_weight": torch.ones(5), "causal": True, "scale": 1.0}
    return {**given, "width": 0, **change}


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


WRONG = [
    ({"q": torch.zeros(5, 16)}, r"q, k: expected \(T, H, D\)"),
    ({"q": torch.zeros(5, 2, 8, dtype=torch.int32)}, "q: expected float32, float64, bfloat16 or float16"),
    ({"k": torch.zeros(5, 2, 8).bfloat16()}, "k: expected the dtype of q"),
    ({"k": torch.zeros(5, 3, 8)}, r"k: expected \(5, 2, 8\)"),
    ({"v": torch.zeros(4, 2, 8)}, r"v: expected \(5, 2, 8\)"),
    ({"cu_q": torch.tensor([0, 2, 5])}, "cu_q: expected int32"),
    ({"cu_q": int32()}, "cu_q: expected at least one offset"),
    ({"cu_k": int32(0, 5)}, "cu_k: expected 3 offsets, got 2"),
    ({"cu_q": int32(1, 2, 5)}, "cu_q: expected offsets from 0, got 1"),
    ({"cu_k": int32(0, 3, 6)}, "cu_k: expected non-decreasing offsets of at most 5, got 6"),
    ({"cu_q": int32(0, 3, 2)}, "cu_q: expected non-decreasing offsets of at most 5, got 2"),
    ({"cu_q": int32(0, -1, 2)}, "cu_q: expected non-decreasing offsets of at most 5, got -1"),
    ({"cu_k": int32(0, 1, 5)}, "cu_k: expected cu_q, causal"),
    ({"key_weight": torch.ones(4)}, "key_weight: expected 5"),
    ({"key_weight": torch.ones(5).double()}, "key_weight: expected the dtype that is computed in"),
    ({"key_weight": torch.ones(5, 2)[:, 0]}, "key_weight: expected a contiguous tensor"),
    ({"width": 8}, "width: expected 0, 16, 32 or 64"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_cpp_names_wrong_arguments(change, message):
    given = arguments(**change)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.lavit_cpp.varlen_attention(*given.values())
    x, lse = torch.zeros(5, 2, 8), torch.zeros(5, 2)
    q, k, v, *others = given.values()
    with pytest.raises(RuntimeError, match=message):
        torch.ops.lavit_cpp.varlen_attention_backward(x, q, k, v, x, lse, *others)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad": torch.zeros(4, 2, 8)}, r"grad: expected \(5, 2, 8\)"),
        ({"out": torch.zeros(5, 2, 8).half()}, "out: expected the dtype of q"),
        ({"lse": torch.zeros(5, 3)}, r"lse: expected \(5, 2\)"),
        ({"lse": torch.zeros(2, 5).T}, "lse: expected a contiguous tensor"),
        ({"lse": torch.zeros(5, 2).double()}, r"lse: expected \(5, 2\) of the dtype"),
    ],
)
def test_cpp_names_wrong_arguments_of_the_backward(change, message):
    q, k, v, *others = arguments().values()
    given = {"grad": torch.zeros(5, 2, 8), "out": torch.zeros(5, 2, 8), "lse": torch.zeros(5, 2), **change}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.lavit_cpp.varlen_attention_backward(given["grad"], q, k, v, given["out"], given["lse"], *others)
