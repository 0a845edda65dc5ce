"""What is measured of the models: how long a step or a call takes, for estimates of what is to come, and sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from torch import nn


def step_seconds(run: Callable[[Callable[[Any], None]], Any]) -> float:
    """Median time between two calls of what ``run`` is given to call after each step; the first interval, in which the
    machine warms up, is left out where there are more."""
    ticks: list[float] = []
    run(lambda row: ticks.append(time.perf_counter()))
    times = [after - before for before, after in zip(ticks[:-1], ticks[1:], strict=True)]
    return median(times[1:] or times)


def call_seconds(step: Callable[[], Any], times: int = 4) -> float:
    """Median time of a call."""

    def repeat(tick: Callable[[Any], None]) -> None:
        for _ in range(times + 1):
            step()
            tick(None)

    return step_seconds(repeat)


def count_parameters(parts: Mapping[str, Sequence[nn.Module]]) -> dict[str, int]:
    """Of each part of a model, under the words that people use for it."""
    return {name: sum(p.numel() for module in modules for p in module.parameters()) for name, modules in parts.items()}
