"""The definition, in plain Python."""

from __future__ import annotations

from bisect import bisect_left, insort

import torch
from torch import Tensor


def best_fit_decreasing(samples: list[int], lengths: list[int], budget: int) -> list[list[int]]:
    """The longest sample first, equally long ones in the order given: each goes where the least room is left, the bin
    opened first among equals, or into a new bin where it fits in none."""
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, bin), sorted
    for i in sorted(samples, key=lambda i: -lengths[i]):
        place = bisect_left(rooms, (lengths[i], 0))
        if place == len(rooms):
            bins.append([])
            room, b = budget, len(bins) - 1
        else:
            room, b = rooms.pop(place)
        bins[b].append(i)
        insort(rooms, (room - lengths[i], b))
    return bins


def next_fit(samples: list[int], lengths: list[int], budget: int) -> list[list[int]]:
    """In the order given: a sample that does not fit in the last bin opens the next one."""
    bins: list[list[int]] = []
    room = -1
    for i in samples:
        if lengths[i] > room:
            bins.append([])
            room = budget
        bins[-1].append(i)
        room -= lengths[i]
    return bins


def bin_pack(lengths: Tensor, budget: int, window: int, in_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Every window's bins in the order of their first samples, a bin's samples in the order given."""
    numbers = lengths.tolist()
    n = len(numbers)
    window = n if in_order else min(window, n)
    bins: list[list[int]] = []
    skipped: list[int] = []
    for first in range(0, n, window or 1):
        samples: list[int] = []
        for i in range(first, min(first + window, n)):
            (samples if 0 <= numbers[i] <= budget else skipped).append(i)
        method = next_fit if in_order else best_fit_decreasing
        bins += sorted(sorted(b) for b in method(samples, numbers, budget))
    order = [i for b in bins for i in b]
    cu = torch.tensor([0, *map(len, bins)]).cumsum(0)
    return torch.tensor(order, dtype=torch.int64), cu, torch.tensor(skipped, dtype=torch.int64)
