"""Timing with pytest-benchmark, on a device that may work behind the host's back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def measure(benchmark, device: torch.device, group: str, run: Callable[[], Any], **extra: Any) -> None:
    """Time ``run`` to its end on the device; ``extra`` is kept beside the figures.

    With ``bytes_moved`` in extra, the table's file also gets GB/s at the median.
    """

    def finished() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    benchmark.group = group
    benchmark.extra_info.update(extra)
    benchmark.pedantic(finished, warmup_rounds=2, rounds=9)
    if "bytes_moved" in extra and benchmark.stats is not None:
        benchmark.extra_info["gigabytes_per_second"] = extra["bytes_moved"] / benchmark.stats.stats.median / 1e9
