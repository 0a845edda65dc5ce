import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from usable import gpu_waits, skip_unless_usable

from lavit.kernels import code_statistics
from lavit.kernels.code_statistics.library import code_statistics_op
from lavit.threads import on as on_threads


@pytest.fixture(params=["reference", "cpu", "cpp", "triton"])
def impl(request, device):
    skip_unless_usable("code_statistics", request.param, device)
    return request.param


@pytest.fixture
def statistics(impl, device):
    """code_statistics by one implementation on one device, from and to tensors on the CPU."""

    def run(x, ids, num_codes):
        counts, sums = code_statistics(x.to(device), ids.to(device), num_codes, impl=impl)
        return counts.cpu(), sums.cpu()

    return run


def case(n, dim, num_codes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(-1, num_codes, (n,), generator=generator)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(0, 50), dim=st.integers(1, 9), num_codes=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_counts_and_sums_are_those_of_a_loop(statistics, n, dim, num_codes, seed):
    x, ids = case(n, dim, num_codes, seed)
    counts, sums = statistics(x, ids, num_codes)
    assert counts.dtype == sums.dtype == torch.float64
    for code in range(num_codes):
        rows = x[ids == code]
        assert int(counts[code]) == len(rows)
        torch.testing.assert_close(sums[code], rows.sum(dim=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "dim", "num_codes"), [(1501, 5, 3), (67, 1031, 2), (513, 33, 1)])
def test_sums_in_float32_are_within_their_rounding(statistics, poisoned, n, dim, num_codes, dtype):
    """Each of a code's sums rounds at most once for each of its rows. The last code has none."""
    x, ids = case(n, dim, num_codes, dtype=dtype)
    counts, sums = statistics(x, ids, num_codes + 1)
    exact, size = (code_statistics(v, ids, num_codes + 1)[1] for v in (x.double(), x.double().abs()))
    assert counts.dtype == sums.dtype == torch.float32
    assert torch.equal(counts.long(), torch.bincount(ids[ids >= 0], minlength=num_codes + 1))
    assert bool(((sums - exact).abs() <= counts[:, None] * 2**-24 * size).all())


def test_the_same_bits_every_run_and_from_any_strides(statistics):
    x, ids = case(1201, 8, 3, dtype=torch.float32)
    first = statistics(x, ids, 3)
    for again in (statistics(x, ids, 3), statistics(x.T.contiguous().T, ids.repeat_interleave(2)[::2], 3)):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", ["cpu", "cpp"])
def test_the_threads_of_the_cpu_do_not_change_a_bit(name):
    skip_unless_usable("code_statistics", name, torch.device("cpu"))
    x, ids = case(5440, 32, 7, dtype=torch.float32)
    results = []
    for threads in (1, 2, 3):
        with on_threads(threads):
            results.append(code_statistics(x, ids, 7, impl=name))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_nothing_used_gives_zeros_and_ignored_rows_may_hold_nan(statistics, poisoned):
    x = torch.full((4, 3), float("nan"))
    counts, sums = statistics(x, torch.full((4,), -1), 5)
    assert not counts.any() and not sums.any()


@pytest.mark.parametrize(("n", "dim"), [(0, 3), (5, 0), (0, 0)])
def test_no_rows_and_no_columns(statistics, poisoned, n, dim):
    counts, sums = statistics(torch.zeros(n, dim), torch.full((n,), 2), 4)
    assert counts.tolist() == [0, 0, n, 0] and sums.shape == (4, dim) and not sums.any()


@pytest.mark.parametrize("n", [0, 1, 7])
def test_opcheck(impl, device, n):
    x, ids = case(n, 3, 5)
    torch.library.opcheck(code_statistics_op, (x.to(device), ids.to(device), 5, impl))


def test_compiles_without_a_graph_break(impl, device):
    def plain(x, ids):
        return code_statistics(x, ids, 4, impl=impl)

    run = torch.compile(plain, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 9):
        x, ids = (t.to(device) for t in case(n, 3, 4))
        assert all(torch.equal(a, b) for a, b in zip(run(x, ids), plain(x, ids), strict=True))


@pytest.mark.gpu
def test_the_host_never_waits_and_a_graph_replays_the_same_bits():
    x, ids = (t.cuda() for t in case(65536, 32, 16384, dtype=torch.float32))
    expected = code_statistics(x, ids, 16384, impl="triton")
    with gpu_waits("error"):
        again = code_statistics(x, ids, 16384, impl="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = code_statistics(x, ids, 16384, impl="triton")
    graph.replay()
    for a, b, c in zip(expected, again, captured, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_wrong_arguments_are_named():
    x, ids = case(4, 3, 5)
    with pytest.raises(ValueError, match=r"ids: expected shape \(4,\) to match x, got \(3,\)"):
        code_statistics(x, ids[:3], 5)
    with pytest.raises(TypeError, match="ids: expected int64, got torch.int32"):
        code_statistics(x, ids.int(), 5)
    with pytest.raises(ValueError, match="num_codes: expected at least 1, got 0"):
        code_statistics(x, ids, 0)
    with pytest.raises(ValueError, match="ids: expected -1 to 4, got 5 at index 1"):
        code_statistics(x, ids.index_fill(0, torch.tensor([1]), 5), 5)
