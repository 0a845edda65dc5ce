"""Timing with pytest-benchmark, on a device that may work behind the host's back."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from benchmarks.limits import reached

ROUNDS = {"cuda": 25, "cpu": 9}
# A round is at least this long, in seconds, so that on a GPU the launch of a graph and the wait for its end are little,
# and on a CPU the clock's steps and the first touch of fresh memory.
ROUND = 2e-3
MOST_COPIES = 200
# What a case may say of itself, and the rate that follows: (unit of extra, name of the rate, divisor).
RATES = (
    ("bytes_moved", "gigabytes_per_second", 1e9),
    ("operations", "operations_per_second", 1),
    ("scores", "scores_per_second", 1),
    ("samples", "samples_per_second", 1),
    ("tokens", "tokens_per_second", 1),
)


def measure(
    benchmark,
    device: torch.device,
    group: str,
    run: Callable[[], Any],
    *,
    implementation: str | None = None,
    baseline: bool = False,
    passed: bool = True,
    parity: str | dict[str, float] = "equal",
    approximate: bool = False,
    counts_memory: bool = True,
    rounds: int | None = None,
    **extra: Any,
) -> None:
    """Time ``run`` to its end on the device, and its peak memory; ``extra`` is kept beside the figures.

    implementation: what is measured, in the table; baseline: the others of the group are compared with this one.
    passed, parity: whether this very case gave the right result, and how near. A case that did not is an AssertionError
        and no figure, unless it is ``approximate``: then it is timed, and its parity printed in place of a ratio.
    counts_memory: False where the allocations are not torch's (faiss, numpy), which nothing here sees.
    rounds: of a run that takes many seconds and that the check of its result has warmed; None for `ROUNDS`.
    extra: with bytes_moved, operations, scores, samples or tokens of one run, the table has the rate at the median, and
        of the first two the share of the device's limit (`benchmarks.limits`).

    On a GPU runs are recorded in a CUDA graph and its replays timed, so that the host is not; a run that cannot be
    recorded is timed run after run, and ``timed`` says why. Inputs are the same every time: what fits in the caches
    is found there.
    """
    if not passed and not approximate:
        raise AssertionError(f"{group}, {implementation}: wrong result, so no figure: {parity}")
    benchmark.group = group
    info = benchmark.extra_info
    info.update(extra)
    info.update(implementation=implementation, baseline=baseline, parity=parity, passed=passed)
    info["peak_bytes"] = peak_bytes(run, device, warm=rounds is not None) if counts_memory else None
    step, copies, info["timed"] = _steps(run, device)
    dry = "LAVIT_DRY" in os.environ  # to see that it works, not how fast
    warmup, rounds = (0, 1) if dry else (2, ROUNDS[device.type]) if rounds is None else (0, rounds)
    benchmark.pedantic(step, warmup_rounds=warmup, rounds=rounds, iterations=copies)
    del step
    if device.type == "cuda":
        torch.cuda.empty_cache()  # a graph's memory stays reserved, and the next case wants it
    if benchmark.stats is not None:
        median = benchmark.stats.stats.median
        for unit, rate, divisor in RATES:
            if unit in extra:
                info[rate] = extra[unit] / median / divisor
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        if (found := reached(name, median, extra)) is not None:
            info["limit_reached"], info["limit"] = found


def peak_bytes(run: Callable[[], Any], device: torch.device, warm: bool = False) -> int:
    """The most memory that torch held at once during one run, beyond what it held before; the result counts.

    On the CPU from the profiler's record of every allocation: what other allocators hand out is not in it.
    """
    if not warm:
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        result = run()
    del result
    kineto = getattr(profile.profiler, "kineto_results", None)
    events = [e for e in (kineto.events() if kineto else ()) if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _steps(run: Callable[[], Any], device: torch.device) -> tuple[Callable[[], Any], int, str]:
    """What to call how often in a round, so that the round's time over the calls is one run's; and how that is done."""
    if device.type != "cuda":
        run()
        start = perf_counter()
        run()
        return run, _copies(max(perf_counter() - start, 1e-7)), "eager"
    try:
        graph = capture(run, device)
        copies = every = _copies(_seconds(graph.replay, device))
        if copies > 1:
            graph = capture(run, device, copies)
        launch, timed = graph.replay, "graph"
    except Exception as error:
        torch.cuda.synchronize(device)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        copies, timed = _copies(_seconds(run, device)), f"eager, since it cannot be recorded: {reason}"
        launch, every = run, 1
    calls = 0

    def step() -> None:
        nonlocal calls
        if calls % every == 0:
            launch()
        calls += 1
        if calls % copies == 0:
            torch.cuda.synchronize(device)

    return step, copies, timed


def _copies(seconds: float) -> int:
    return max(1, min(MOST_COPIES, math.ceil(ROUND / seconds)))


def capture(run: Callable[[], Any], device: torch.device, copies: int = 1) -> torch.cuda.CUDAGraph:
    """``copies`` runs as one CUDA graph. Raises RuntimeError where a run waits for the device, and so cannot be one.

    Such a run is found before the recording begins: one that breaks off leaves torch's random generators recording.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        run()
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(copies):
            run()
    return graph


def _seconds(launch: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Device time of one launch among several, by events."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    launch()
    start.record(torch.cuda.current_stream(device))
    for _ in range(repeats):
        launch()
    end.record(torch.cuda.current_stream(device))
    end.synchronize()
    return max(start.elapsed_time(end) / 1e3 / repeats, 1e-7)


def median_seconds(run: Callable[[], Any], device: torch.device, rounds: int = 15) -> float:
    """Median device time of one run on a GPU, from replays of a graph of many: for sweeps, outside pytest."""
    copies = _copies(_seconds(capture(run, device).replay, device))
    graph = capture(run, device, copies)
    times = sorted(_seconds(graph.replay, device, repeats=1) / copies for _ in range(rounds))
    return times[rounds // 2]
