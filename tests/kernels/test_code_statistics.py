import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavit.kernels import code_statistics
from lavit.kernels.code_statistics.library import code_statistics_op


def case(n, dim, num_codes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator, dtype=dtype)
    return x, torch.randint(-1, num_codes, (n,), generator=generator)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 50), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**31))
def test_counts_and_sums_are_those_of_a_loop(n, dim, num_codes, seed):
    x, ids = case(n, dim, num_codes, seed)
    counts, sums = code_statistics(x, ids, num_codes)
    assert counts.dtype == sums.dtype == torch.float64
    for code in range(num_codes):
        rows = x[ids == code]
        assert int(counts[code]) == len(rows)
        torch.testing.assert_close(sums[code], rows.sum(dim=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_in_float32_are_within_their_rounding(dtype):
    x, ids = case(3001, 5, 7, dtype=dtype)
    _, sums = code_statistics(x, ids, 7)
    _, exact = code_statistics(x.double(), ids, 7)
    _, size = code_statistics(x.double().abs(), ids, 7)
    counts = torch.bincount(ids[ids >= 0], minlength=7)
    assert sums.dtype == torch.float32
    assert bool(((sums - exact).abs() <= counts[:, None] * 2**-24 * size).all())


def test_the_same_bits_every_run():
    x, ids = case(5000, 8, 3, dtype=torch.float32)
    first = code_statistics(x, ids, 3)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, code_statistics(x, ids, 3), strict=True))


def test_nothing_used_gives_zeros_and_ignored_rows_may_hold_nan():
    x = torch.full((4, 3), float("nan"))
    counts, sums = code_statistics(x, torch.full((4,), -1), 5)
    assert not counts.any() and not sums.any()


@pytest.mark.parametrize("n", [0, 1, 7])
def test_opcheck(n):
    x, ids = case(n, 3, 5)
    torch.library.opcheck(code_statistics_op, (x, ids, 5, "auto"))


def test_compiles_without_a_graph_break():
    run = torch.compile(code_statistics, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 9):
        x, ids = case(n, 3, 4)
        assert all(torch.equal(a, b) for a, b in zip(run(x, ids, 4), code_statistics(x, ids, 4), strict=True))


def test_wrong_arguments_are_named(monkeypatch):
    x, ids = case(4, 3, 5)
    with pytest.raises(ValueError, match=r"ids: expected shape \(4,\) to match x, got \(3,\)"):
        code_statistics(x, ids[:3], 5)
    with pytest.raises(TypeError, match="ids: expected int64, got torch.int32"):
        code_statistics(x, ids.int(), 5)
    with pytest.raises(ValueError, match="num_codes: expected at least 1, got 0"):
        code_statistics(x, ids, 0)
    monkeypatch.setenv("LAVIT_DEBUG", "1")
    with pytest.raises(ValueError, match="ids: expected -1 to 4, got .* to 5"):
        code_statistics(x, ids.index_fill(0, torch.tensor([1]), 5), 5)
