"""bin_pack beside what trainers do in Python, all in one run, with the share of the budget that each fills.

Lengths are log-normal, rounded and cut to the budget of 4096. A median of 120 is about an image's tokens and a caption,
400 a short document. Of the last kind most samples are longer than half of the budget: more no method can fill.
``pytest benchmarks/kernels/bench_bin_pack.py``
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.timing import measure
from lavit.kernels import bin_pack
from lavit.kernels.extension import cpp_unusable

BUDGET = 4096
WINDOW = 65536
CASES = {  # (samples, median, sigma)
    "1M median 120": (1_000_000, 120, 1.0),
    "1M median 400": (1_000_000, 400, 1.0),
    "1M median 2500 sigma 0.3": (1_000_000, 2500, 0.3),
    "50k median 120": (50_000, 120, 1.0),
}
MOST_SEARCHED = 50_000  # samples, for peers that look at many bins for each


def drawn(case: str) -> torch.Tensor:
    n, median, sigma = CASES[case]
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, generator=generator) * sigma).exp().mul(median).round().long().clamp(1, BUDGET)


def greedy(lengths: list[int]) -> list[list[int]]:
    """Next-fit, as most trainers pack: fill a row until a sample does not fit, then begin the next."""
    rows: list[list[int]] = [[]]
    used = 0
    for i, length in enumerate(lengths):
        if used + length > BUDGET:
            rows.append([])
            used = 0
        rows[-1].append(i)
        used += length
    return rows


def emptiest_first(lengths: list[int]) -> list[list[int]]:
    """The longest sample first, each into the emptiest row of a heap, as samplers that balance rows do."""
    rows: list[list[int]] = []
    heap: list[tuple[int, int]] = []  # (tokens, row)
    for i in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        if heap and heap[0][0] + lengths[i] <= BUDGET:
            tokens, row = heap[0]
            heapq.heapreplace(heap, (tokens + lengths[i], row))
        else:
            row = len(rows)
            rows.append([])
            heapq.heappush(heap, (lengths[i], row))
        rows[row].append(i)
    return rows


def first_fit_decreasing(lengths: list[int]) -> list[list[int]]:
    """The longest sample first, each into the first row that holds it, found by numpy among all rows."""
    rows: list[list[int]] = []
    room = np.zeros(len(lengths), dtype=np.int64)
    for i in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        fitting = room[: len(rows)] >= lengths[i]
        row = int(fitting.argmax()) if fitting.any() else len(rows)
        if row == len(rows):
            rows.append([])
            room[row] = BUDGET
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


LAVIT: dict[str, tuple[str, dict[str, Any]]] = {
    "lavit cpp, window 65536": ("cpp", {"window": WINDOW}),
    "lavit cpp, window 1024": ("cpp", {"window": 1024}),
    "lavit cpp, no window": ("cpp", {}),
    "lavit cpp, next_fit": ("cpp", {"method": "next_fit"}),
    "lavit reference, window 65536": ("reference", {"window": WINDOW}),
}
PEERS = {
    "next-fit in Python": greedy,
    "emptiest row first, heapq": emptiest_first,
    "first-fit decreasing, numpy": first_fit_decreasing,
}


@pytest.mark.parametrize("name", [*LAVIT, *PEERS])
@pytest.mark.parametrize("case", CASES)
def bench_bin_pack(benchmark, case, name):
    lengths = drawn(case)
    n = lengths.shape[0]
    run: Callable[[], Any]
    if n > MOST_SEARCHED and name.startswith(("first-fit", "lavit reference")):
        pytest.skip(f"minutes for {n} samples; measured on fewer")
    if name in LAVIT:
        impl, how = LAVIT[name]
        if impl == "cpp" and (reason := cpp_unusable("cpu")) is not None:
            pytest.skip(reason)
        run = partial(bin_pack, lengths, BUDGET, impl=impl, **how)
        bins = run()
        order, cu = bins.order, bins.cu
    else:
        numbers = lengths.tolist()
        run = partial(PEERS[name], numbers)
        rows = run()
        order = torch.tensor([i for row in rows for i in row])
        cu = torch.tensor([0, *map(len, rows)]).cumsum(0)
    tokens = torch.nn.functional.pad(lengths[order].cumsum(0), (1, 0))[cu].diff()
    passed = torch.equal(order.sort().values, torch.arange(n)) and int(tokens.max()) <= BUDGET
    fill_rate = round(float(tokens.sum()) / (tokens.shape[0] * BUDGET), 5)
    measure(
        benchmark,
        torch.device("cpu"),
        f"bin_pack {case}",
        run,
        implementation=name,
        passed=passed,
        parity={"fill_rate": fill_rate},
        counts_memory=False,
        fill_rate=fill_rate,
        samples=n,
    )
