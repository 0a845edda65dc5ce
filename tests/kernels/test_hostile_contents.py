"""Random contents, most of which fit nothing: what is right is computed right, all else ends in ValueError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ragged import IMPLEMENTATIONS, same
from torch import Tensor
from usable import skip_unless_usable

from lavit.kernels import (
    Ragged,
    assemble_sequences,
    bin_pack,
    code_statistics,
    pack,
    pad,
    unpack,
    unpad,
    varlen_attention,
)
from lavit.kernels.checks import verify_offsets, verify_order, verify_range
from lavit.kernels.extension import cpp_unusable

CPU = torch.device("cpu")
EXTREME = [-(2**31), -1, 2**31 - 1]

small = st.integers(-1, 6)


@st.composite
def offsets(draw, batch: int) -> list[int]:
    """Half of them from lengths, a few of which are odd; the others of any numbers."""
    if draw(st.booleans()):
        numbers = [0]
        for length in draw(st.lists(st.integers(0, 3), min_size=batch, max_size=batch)):
            numbers.append(numbers[-1] + length)
    else:
        numbers = draw(st.lists(st.one_of(small, st.sampled_from(EXTREME)), min_size=batch + 1, max_size=batch + 1))
    if draw(st.integers(0, 3)) == 0:
        numbers[draw(st.integers(0, batch))] = draw(st.one_of(small, st.sampled_from(EXTREME)))
    return numbers


@st.composite
def orders(draw, batch: int, patches: int) -> list[list[int]]:
    rows = [list(draw(st.permutations(range(patches)))) for _ in range(batch)]
    if batch and patches and draw(st.booleans()):
        place = draw(st.integers(0, batch - 1)), draw(st.integers(0, patches - 1))
        rows[place[0]][place[1]] = draw(st.one_of(small, st.sampled_from(EXTREME)))
    return rows


def fit(cu: list[int], total: int, longest: int | None = None) -> bool:
    """The law: from 0, never falling, within the rows, none too long."""
    steps = [b - a for a, b in zip(cu[:-1], cu[1:], strict=True)]
    return cu[0] == 0 and cu[-1] <= total and all(0 <= n and (longest is None or n <= longest) for n in steps)


def int32(numbers: list, *shape: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32).reshape(*shape or (-1,))


def right_or_refused(fits: bool, call: Callable[[], Any], expected: Callable[[], Any]) -> None:
    if not fits:
        with pytest.raises(ValueError, match="expected|is not a permutation"):
            call()
        return
    for got, want in zip(call(), expected(), strict=True):
        assert same(got, want), f"expected {want.tolist()}, got {got.tolist()}"


def outcome(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except ValueError as error:
        return str(error)


@pytest.mark.skipif(cpp_unusable("cpu") is not None, reason=str(cpp_unusable("cpu")))
@settings(max_examples=300)
@given(cu=st.integers(0, 4).flatmap(offsets), order=st.integers(0, 4).flatmap(lambda n: orders(2, n)),
       ids=st.lists(st.one_of(small, st.sampled_from([-(2**63), 2**63 - 1])), max_size=6), wide=st.booleans(),
       bounds=st.tuples(st.one_of(st.none(), st.integers(-1, 8)), st.one_of(st.none(), st.integers(0, 4))))  # fmt: skip
def test_with_the_compiled_look_and_without_it_the_same_is_refused_in_the_same_words(cu, order, ids, wide, bounds):
    numbers = torch.tensor(ids, dtype=torch.int64) if wide else torch.tensor(ids).clamp(-9, 9).int()
    looks = [
        lambda: verify_offsets("cu", int32(cu), total=bounds[0], longest=bounds[1]),
        lambda: verify_order(int32(order, 2, len(order[0]))),
        lambda: verify_range("ids", numbers, -1, bounds[0]),
        lambda: verify_range("ids", numbers, 0, 2**63 - 1 if wide else 3, but=-1),
    ]
    compiled = [outcome(look) for look in looks]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lavit.kernels.checks._compiled", lambda: None)
        assert [outcome(look) for look in looks] == compiled


layouts = st.integers(0, 3).flatmap(
    lambda batch: st.integers(0, 4).flatmap(
        lambda patches: st.tuples(orders(batch, patches), offsets(batch), st.just(patches))
    )
)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=300)
@given(layout=layouts, total=st.integers(0, 8), dropped=st.booleans())
@example(layout=([[0, 1, 2]], [0, 2**31 - 1], 3), total=3, dropped=True)
@example(layout=([[0, 1, 2], [2, 1, 0]], [0, 2**31 - 1, -(2**31)], 3), total=3, dropped=False)
def test_pack_and_unpack(impl, layout, total, dropped):
    rows, cu, patches = layout
    batch = len(rows)
    fits = fit(cu, total, patches) and all(sorted(row) == list(range(patches)) for row in rows)
    order, ends = int32(rows, batch, patches), int32(cu)
    x = torch.arange(1, 1 + batch * patches).view(batch, patches)
    values = torch.arange(1, 1 + total)

    def places() -> list[tuple[int, int, int]]:
        """(packed row, image, patch)."""
        found = []
        for b, row in enumerate(rows):
            n = cu[b + 1] - cu[b]
            found += [(cu[b] + r, b, patch) for r, patch in enumerate(row[patches - n :] if dropped else row[:n])]
        return found

    def packed() -> list[Tensor]:
        want = torch.zeros(total, dtype=torch.int64)
        for t, b, patch in places():
            want[t] = x[b, patch]
        return [want]

    def unpacked() -> list[Tensor]:
        want = torch.full((batch, patches), -7)
        for t, b, patch in places():
            want[b, patch] = values[t]
        return [want]

    right_or_refused(fits, lambda: [pack(x, order, ends, total=total, dropped=dropped, impl=impl)], packed)
    right_or_refused(
        fits, lambda: [unpack(values, order, ends, patches, fill=-7, dropped=dropped, impl=impl)], unpacked
    )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=300)
@given(cu=st.integers(0, 3).flatmap(offsets), total=st.integers(0, 8), length=st.integers(0, 4),
       asked=st.booleans(), side=st.sampled_from(["left", "right"]))  # fmt: skip
@example(cu=[1, 3], total=4, length=3, asked=True, side="right")
def test_pad_and_unpad(impl, cu, total, length, asked, side):
    batch, ends = len(cu) - 1, int32(cu)
    rows = torch.arange(1, 1 + total)
    padded = torch.arange(1, 1 + batch * length).view(batch, length)

    def places() -> list[tuple[int, int, int, int]]:
        """(row, sequence, column, rank)."""
        found = []
        for b in range(batch):
            n = min(cu[b + 1] - cu[b], length)
            found += [(cu[b] + r, b, length - n + r if side == "left" else r, r) for r in range(n)]
        return found

    def laid_out() -> list[Tensor]:
        want, mask = torch.full((batch, length), -7), torch.zeros(batch, length, dtype=torch.bool)
        position = torch.zeros(batch, length, dtype=torch.int64)
        for t, b, column, rank in places():
            want[b, column], mask[b, column], position[b, column] = rows[t], True, rank
        return [want, mask, position]

    def back() -> list[Tensor]:
        want = torch.zeros(total, dtype=torch.int64)
        for t, b, column, _ in places():
            want[t] = padded[b, column]
        return [want]

    ragged = Ragged(rows, ends, length)
    right_or_refused(
        fit(cu, total, None if asked else length),
        lambda: pad(ragged, length if asked else None, side=side, value=-7, impl=impl),
        laid_out,
    )
    right_or_refused(fit(cu, total), lambda: [unpad(padded, ends, side=side, total=total, impl=impl)], back)


@settings(max_examples=200)
@given(cu=st.integers(0, 3).flatmap(offsets), total=st.integers(0, 8))
def test_a_ragged_batch_is_taken_apart(cu, total):
    rows = torch.arange(total)
    right_or_refused(fit(cu, total), Ragged(rows, int32(cu), 0).unbind, lambda: rows[: cu[-1]].split(
        [b - a for a, b in zip(cu[:-1], cu[1:], strict=True)]) if len(cu) > 1 else [])  # fmt: skip


@pytest.mark.parametrize("impl", ["reference", "sdpa", "cpp", "triton"])
@settings(max_examples=100)
@given(data=st.data(), causal=st.booleans(), bounds=st.tuples(st.integers(0, 4), st.integers(0, 2**40)))
def test_varlen_attention(impl, data, causal, bounds):
    skip_unless_usable("varlen_attention", impl, CPU)
    batch = data.draw(st.integers(0, 2), "batch")
    cu_q, cu_k = (data.draw(offsets(batch), "offsets") for _ in range(2))
    cu_k = cu_q if causal and data.draw(st.booleans(), "equal") else cu_k
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0, 1.0, 1.0, -1.0]), min_size=6,
                                 max_size=6), "weights")  # fmt: skip
    q, k, v = (torch.randn(6, 1, 8) for _ in range(3))
    fits = fit(cu_q, 6, bounds[0]) and fit(cu_k, 6, bounds[1]) and (not causal or cu_q == cu_k)
    fits = fits and all(w >= 0 for w in weights[: cu_k[-1]])
    weight = torch.tensor(weights)

    def call() -> Tensor:
        return varlen_attention(q, k, v, int32(cu_q), int32(cu_k), *bounds, causal=causal, key_weight=weight, impl=impl)

    if not fits:
        with pytest.raises(ValueError, match="expected"):
            call()
        return
    want = torch.zeros_like(q)
    for b in range(batch):
        for rank, i in enumerate(range(cu_q[b], cu_q[b + 1])):
            keys = range(cu_k[b], min(cu_k[b + 1], cu_k[b] + rank + 1) if causal else cu_k[b + 1])
            e = torch.stack([weight[j] * (q[i, 0] @ k[j, 0] * 8**-0.5).exp() for j in keys]) if keys else weight[:0]
            if e.sum() > 0:
                want[i, 0] = (e[:, None] * v[list(keys), 0]).sum(0) / e.sum()
    torch.testing.assert_close(call(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["reference", "cpu", "triton"])
@settings(max_examples=100)
@given(ids=st.lists(st.one_of(st.integers(-1, 4), st.sampled_from([-2, 5, 2**31, -(2**63), 2**63 - 1])), max_size=9))
def test_code_statistics(impl, ids):
    skip_unless_usable("code_statistics", impl, CPU)
    x = torch.arange(1.0, 1 + 3 * len(ids)).view(-1, 3)

    def expected() -> list[Tensor]:
        counts, sums = torch.zeros(5), torch.zeros(5, 3)
        for row, k in zip(x, ids, strict=True):
            if k >= 0:
                counts[k] += 1
                sums[k] += row
        return [counts, sums]

    numbers = torch.tensor(ids, dtype=torch.int64)
    right_or_refused(all(-1 <= k < 5 for k in ids), lambda: code_statistics(x, numbers, 5, impl=impl), expected)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=300)
@given(data=st.data(), total=st.one_of(st.none(), st.integers(0, 20)))
def test_assemble_sequences(impl, data, total):
    """What is right is told in test_assemble_sequences.py; here the reference says it, which those tests hold."""
    cu = {name: data.draw(st.integers(1, 3).flatmap(offsets), name) for name in ("text", "images", "segments")}
    numbers = st.one_of(st.integers(0, 2), st.integers(0, 2), st.sampled_from([-1, 3, 2**63 - 1, -(2**63)]))
    values = {name: data.draw(st.lists(numbers, max_size=6), f"values of {name}") for name in cu}
    spare = len(cu["text"]) + len(cu["images"]) - 2
    fits = len(values["segments"]) <= spare and all(fit(cu[name], len(values[name])) for name in cu)
    if fits:
        used = {name: values[name][: cu[name][-1]] for name in cu}
        texts = used["segments"].count(0)
        images = len(used["segments"]) - texts
        fits = all(0 <= kind <= 2 for kind in used["segments"]) and all(t >= 0 for t in used["text"])
        fits = fits and all(0 <= c <= 2**63 - 1 - 32002 for c in used["images"])
        fits = fits and texts < len(cu["text"]) and images < len(cu["images"])
        rows = cu["text"][texts] + cu["images"][images] + 2 * images if fits else 0
        fits = fits and (total is None or rows <= total)
    batches = [Ragged(torch.tensor(values[name], dtype=torch.int64), int32(cu[name]), 0) for name in cu]
    right_or_refused(fits, lambda: assemble_sequences(*batches, total=total, impl=impl),
                     lambda: assemble_sequences(*batches, total=total, impl="reference"))  # fmt: skip


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=200)
@given(lengths=st.lists(st.one_of(st.integers(0, 9), st.sampled_from([-1, 2**31, -(2**63), 2**63 - 1])), max_size=9),
       method=st.sampled_from(["best_fit_decreasing", "next_fit"]),
       too_long=st.sampled_from(["raise", "skip"]))  # fmt: skip
def test_bin_pack(impl, lengths, method, too_long):
    def call() -> Any:
        return bin_pack(torch.tensor(lengths, dtype=torch.int64), 8, method=method, too_long=too_long, impl=impl)

    if any(n < 0 or (n > 8 and too_long == "raise") for n in lengths):
        with pytest.raises(ValueError, match="lengths: expected"):
            call()
        return
    bins = call()
    held = [[lengths[i] for i in b.tolist()] for b in bins.unbind()]
    assert all(b and sum(b) <= 8 for b in held)
    assert sorted([*bins.order.tolist(), *bins.skipped.tolist()]) == list(range(len(lengths)))
    assert bins.skipped.tolist() == [i for i, n in enumerate(lengths) if n > 8]
    assert bins.tokens == sum(map(sum, held))
