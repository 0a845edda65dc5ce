"""Sizes of images: the six of the release's high-res model, and which of them is nearest."""

from __future__ import annotations

import math

ASPECT_RATIOS = ((1024, 1024), (896, 1152), (832, 1216), (768, 1344), (1152, 896), (1216, 832), (1344, 768))
"""(height, width) in pixels: the release's square and three other sizes, and the transposes of these."""


def nearest_size(height: float, width: float, sizes: tuple[tuple[int, int], ...] = ASPECT_RATIOS) -> tuple[int, int]:
    """The (height, width) of ``sizes`` whose ratio of sides is nearest, in logarithms, to that of height to width.

    Raises ValueError for sides that are not positive and finite.
    """
    for name, side in (("height", height), ("width", width)):
        if not (math.isfinite(side) and side > 0):
            raise ValueError(f"{name}: expected a positive number, got {side}")
    ratio = math.log(height / width)
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - ratio))
