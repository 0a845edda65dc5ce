"""Some of many, drawn by a seed and in the order of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def draw_sample(items: Sequence[T], most: int | None, seed: int) -> list[T]:
    """At most ``most`` items, every set of so many as likely; None: all. With the same items and seed, fewer are among
    more."""
    if most is None or most >= len(items):
        return list(items)
    return [items[place] for place in sorted(np.random.default_rng(seed).permutation(len(items))[:most])]
