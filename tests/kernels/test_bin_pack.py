from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged import IMPLEMENTATIONS

from lavit.kernels import BinPacker, Bins, bin_pack

METHODS = ["best_fit_decreasing", "next_fit"]
# The last ones are too large for a bit and a heap for every room.
BUDGETS = [1, 7, 63, 64, 200, 70_000, 2**31]


@st.composite
def tasks(draw, too_long: bool = False) -> tuple[list[int], int]:
    """Lengths and a budget: many equal, empty and full samples; with ``too_long`` some beyond the budget."""
    budget = draw(st.sampled_from(BUDGETS))
    special = st.sampled_from([0, 1, budget // 2, budget // 2 + 1, budget - 1, budget])
    most = 2 * budget if too_long else budget
    return draw(st.lists(st.one_of(special, st.integers(0, most)), max_size=60)), budget


windows = st.one_of(st.none(), st.integers(1, 70))


def log_normal(n: int, median: int, sigma: float, budget: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, generator=generator) * sigma).exp().mul(median).round().long().clamp(1, budget)


def bins_of(bins: Bins) -> list[list[int]]:
    return [b.tolist() for b in bins.unbind()]


def searched(lengths: list[int], budget: int) -> list[list[int]]:
    """Best-fit decreasing by looking at every bin for every sample."""
    bins: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rooms = [budget - sum(lengths[j] for j in b) for b in bins]
        fitting = [b for b, room in enumerate(rooms) if room >= lengths[i]]
        if fitting:
            bins[min(fitting, key=lambda b: (rooms[b], b))].append(i)
        else:
            bins.append([i])
    return sorted(sorted(b) for b in bins)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(task=tasks())
def test_each_sample_goes_where_it_leaves_the_least_room(impl, task):
    lengths, budget = task
    assert bins_of(bin_pack(lengths, budget, impl=impl)) == searched(lengths, budget)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS[1:])
@pytest.mark.parametrize("method", METHODS)
@given(task=tasks(too_long=True), window=windows)
def test_the_compiled_bins_are_those_of_the_reference(impl, method, task, window):
    lengths, budget = task
    how = {"method": method, "window": window if method == METHODS[0] else None, "too_long": "skip"}
    got, want = (bin_pack(lengths, budget, impl=i, **how) for i in (impl, "reference"))
    for name in ("order", "cu", "skipped"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name
        assert getattr(got, name).dtype == torch.int64
    assert (got.tokens, got.fill_rate) == (want.tokens, want.fill_rate)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS[1:])
@pytest.mark.parametrize("budget", [4096, 70_000])
def test_the_compiled_bins_of_many_samples_are_those_of_the_reference(impl, budget):
    lengths = log_normal(20_000, 120, 1.0, 4096)
    got, want = (bin_pack(lengths, budget, window=7001, impl=i) for i in (impl, "reference"))
    assert torch.equal(got.order, want.order) and torch.equal(got.cu, want.cu)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("method", METHODS)
@given(task=tasks(too_long=True), window=windows)
def test_every_sample_is_in_one_bin_and_no_bin_is_over_budget(impl, method, task, window):
    lengths, budget = task
    window = window if method == METHODS[0] else None
    packed = bin_pack(lengths, budget, method=method, window=window, too_long="skip", impl=impl)
    bins = bins_of(packed)
    assert sorted(i for b in bins for i in b) == [i for i, n in enumerate(lengths) if n <= budget]
    assert packed.skipped.tolist() == [i for i, n in enumerate(lengths) if n > budget]
    sums = [sum(lengths[i] for i in b) for b in bins]
    assert len(bins) == len(packed) == packed.cu.shape[0] - 1
    assert max(sums, default=0) <= budget
    assert packed.tokens == sum(sums)
    assert packed.fill_rate == (sum(sums) / (len(bins) * budget) if bins else 1.0)
    assert all(b == sorted(b) for b in bins) and bins == sorted(bins)
    if method == "next_fit":
        assert packed.order.tolist() == sorted(packed.order.tolist())


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(task=tasks(), window=st.integers(1, 70))
def test_no_two_bins_of_a_window_could_be_one(impl, task, window):
    lengths, budget = task
    bins = bins_of(bin_pack(lengths, budget, window=window, impl=impl))
    for first in range(0, len(lengths), window):
        sums = sorted(sum(lengths[i] for i in b) for b in bins if first <= b[0] < first + window)
        assert len(sums) < 2 or sums[0] + sums[1] > budget


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("method", METHODS)
@given(task=tasks(too_long=True), window=windows, cuts=st.lists(st.integers(0, 60), max_size=5))
def test_a_stream_gives_the_bins_of_the_whole_wherever_it_is_cut(impl, method, task, window, cuts):
    lengths, budget = task
    window = window if method == METHODS[0] else None
    whole = bin_pack(lengths, budget, method=method, window=window, too_long="skip", impl=impl)
    packer = BinPacker(budget, window, method=method, too_long="skip", impl=impl)
    ends = [0, *sorted(min(c, len(lengths)) for c in cuts), len(lengths)]
    parts = [packer.add(torch.tensor(lengths[a:z], dtype=torch.int64)) for a, z in zip(ends, ends[1:], strict=False)]
    parts.append(packer.finish())
    assert [b for part in parts for b in bins_of(part)] == bins_of(whole)
    assert [i for part in parts for i in part.skipped.tolist()] == whole.skipped.tolist()
    assert (packer.bins, packer.tokens, packer.samples) == (len(whole), whole.tokens, len(lengths))
    assert packer.fill_rate == whole.fill_rate


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_stream_holds_back_less_than_its_window(impl):
    packer, given_out = BinPacker(4096, 100, impl=impl), 0
    for piece in log_normal(1_000, 400, 1.0, 4096).split(37):
        given_out += packer.add(piece).order.shape[0]
        assert packer.samples - given_out < 100
        assert sum(h.untyped_storage().nbytes() for h in packer._held) < 8 * (100 + 37)
    in_order, given_out = BinPacker(10, None, method="next_fit", impl=impl), 0
    for length in [4, 4, 4, 1, 1, 9, 2]:
        given_out += in_order.add([length]).order.shape[0]
        assert in_order.samples - given_out <= 4
    assert given_out == 6


def test_a_stream_keeps_no_hold_of_the_memory_it_was_given():
    packer, lengths = BinPacker(10, 4), torch.tensor([9, 9])
    packer.add(lengths)
    lengths.zero_()
    assert packer.finish().tokens == 18


def test_what_comes_after_the_end_counts_on_in_bins_of_its_own():
    packer = BinPacker(10, 4)
    packer.add([3])
    assert bins_of(packer.finish()) == [[0]]
    assert bins_of(packer.add([3])) == [] == bins_of(packer.finish())[1:]
    assert (packer.samples, packer.bins) == (2, 2)


def test_without_a_window_all_samples_share_one():
    lengths = log_normal(500, 120, 1.0, 4096)
    whole = bin_pack(lengths, 4096)
    assert torch.equal(whole.order, bin_pack(lengths, 4096, window=500).order)
    assert not torch.equal(whole.order, bin_pack(lengths, 4096, window=250).order)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_small_cases_by_hand(impl):
    def packed(lengths, **how):
        return bins_of(bin_pack(lengths, 10, impl=impl, **how))

    assert packed([]) == []
    assert packed([10, 10]) == [[0], [1]]
    assert packed([0, 0, 0]) == [[0, 1, 2]]
    assert packed([5, 6, 4, 5]) == [[0, 3], [1, 2]]
    assert packed([5, 6, 4, 5], method="next_fit") == [[0], [1, 2], [3]]
    assert packed([7, 7, 3]) == [[0, 2], [1]]  # of two bins with the same room, the first
    assert packed([2, 8, 8, 2], window=2) == [[0, 1], [2, 3]]
    assert packed([9, 11, 1], too_long="skip") == [[0, 2]]
    assert bin_pack([], 10, impl=impl).fill_rate == 1.0
    assert bin_pack([0], 10, impl=impl).fill_rate == 0.0


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("median, window", [(120, 2048), (120, None), (400, 2048), (400, None)])
def test_log_normal_lengths_fill_at_least_98_percent(impl, median, window):
    lengths = log_normal(30_000, median, 1.0, 4096)
    assert bin_pack(lengths, 4096, window=window, impl=impl).fill_rate >= 0.98
    assert bin_pack(lengths, 4096, method="next_fit", impl=impl).fill_rate < 0.95


@pytest.mark.parametrize("convert", [np.array, lambda n: np.array(n, dtype=np.uint16)[::-1][::-1], tuple,
                                     lambda n: torch.tensor(n, dtype=torch.int32),
                                     lambda n: torch.tensor([n, n]).T[:, 0]])
def test_lengths_come_in_any_form_of_integers(convert):
    numbers = [5, 6, 4, 5]
    assert bins_of(bin_pack(convert(numbers), 10)) == [[0, 3], [1, 2]]
    fixed = np.array(numbers)
    fixed.setflags(write=False)
    assert len(bin_pack(fixed, 10)) == 2


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="lengths: expected samples of at most 10 tokens, the budget; sample 2 has 11"):
        bin_pack([1, 10, 11, 12], 10)
    with pytest.raises(ValueError, match="lengths: expected lengths >= 0, got -1 for sample 1"):
        bin_pack([11, -1], 10, too_long="skip")
    for wrong in ([1.0], torch.ones(3), torch.ones(3, dtype=torch.bool), np.ones(3, dtype=bool), [2**64], ["a"],
                  np.ones(3, dtype=np.uint64)):
        with pytest.raises(TypeError, match="lengths: expected integers that int64 holds, got"):
            bin_pack(wrong, 10)
    with pytest.raises(ValueError, match=r"lengths: expected shape \(n,\), got \(2, 2\)"):
        bin_pack([[1, 2], [3, 4]], 10)
    with pytest.raises(ValueError, match="lengths: expected a tensor on the CPU, got one on meta"):
        bin_pack(torch.ones(3, dtype=torch.int64, device="meta"), 10)
    for budget in (0, -3, 2**31 + 1):
        with pytest.raises(ValueError, match=f"budget: expected 1 to 2147483648 tokens, got {budget}"):
            bin_pack([1], budget)
    with pytest.raises(TypeError, match="budget: expected an integer, got float"):
        bin_pack([1], 10.0)
    with pytest.raises(ValueError, match="window: expected at least one sample or None, got 0"):
        BinPacker(10, 0)
    with pytest.raises(ValueError, match="window: expected None, since next_fit takes samples one by one; got 5"):
        bin_pack([1], 10, method="next_fit", window=5)
    with pytest.raises(ValueError, match="method: expected one of best_fit_decreasing, next_fit; got 'first_fit'"):
        bin_pack([1], 10, method="first_fit")
    with pytest.raises(ValueError, match="too_long: expected one of raise, skip; got 'cut'"):
        bin_pack([1], 10, too_long="cut")
    with pytest.raises(ValueError, match="impl=: bin_pack has the implementations cpp, reference; got 'rust'"):
        bin_pack([1], 10, impl="rust")


def test_a_sample_that_a_stream_refuses_is_named_by_its_place_and_not_added():
    packer = BinPacker(10, 4)
    packer.add([1, 2, 3])
    with pytest.raises(ValueError, match="sample 4 has 11"):
        packer.add([1, 11])
    packer.add([4])
    assert bins_of(packer.finish()) == [] and (packer.samples, packer.tokens) == (4, 10)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS[1:])
def test_the_compiled_kernel_stays_in_bounds_whatever_it_is_given(impl):
    """Without the checks of the public function: what fits in no bin is skipped, other arguments are refused."""
    lengths = torch.tensor([-(2**63), 2**63 - 1, 3, -1, 11, 10])
    for in_order in (False, True):
        order, _, skipped = torch.ops.lavit_cpp.bin_pack(lengths, 10, 2, in_order)
        assert order.tolist() == [2, 5] and skipped.tolist() == [0, 1, 3, 4]
    with pytest.raises(RuntimeError, match="budget: expected >= 1, got 0"):
        torch.ops.lavit_cpp.bin_pack(lengths, 0, 2, False)
    with pytest.raises(RuntimeError, match="window: expected >= 1, got 0"):
        torch.ops.lavit_cpp.bin_pack(lengths, 10, 0, False)
    with pytest.raises(RuntimeError, match=r"lengths: expected \(n,\) int64"):
        torch.ops.lavit_cpp.bin_pack(lengths.int(), 10, 2, False)
