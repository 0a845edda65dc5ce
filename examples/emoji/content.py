"""How much there is in a picture, and whether the number of its tokens follows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from examples.emoji.judge import pixels

EDGE = 0.1
"""A step of brightness from a pixel to the next, as a share of the full range, that is an edge."""
JPEG_QUALITY = 90


def edge_density(images: Any) -> np.ndarray:
    """The share of the pixels of each picture where the brightness steps, to the right or down: (n,).

    images: (n, side, side, 3) uint8. Raises ValueError for others.
    """
    grey = pixels(images) @ np.array([0.299, 0.587, 0.114]) / 255
    right, down = np.abs(np.diff(grey, axis=2))[:, :-1], np.abs(np.diff(grey, axis=1))[:, :, :-1]
    return (np.hypot(right, down) > EDGE).mean((1, 2))


def jpeg_sizes(images: Any) -> np.ndarray:
    """Bytes of each picture as a JPEG file: (n,) int64."""
    sizes = []
    for image in pixels(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY)
        sizes.append(file.tell())
    return np.array(sizes, dtype=np.int64)


def rank_correlation(one: Sequence[float] | np.ndarray, two: Sequence[float] | np.ndarray) -> float | None:
    """Spearman's: the correlation of the ranks, equal numbers sharing theirs; None where one of both never changes.

    Raises ValueError for different lengths and fewer than two numbers.
    """
    one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
    if one.ndim != 1 or one.shape != two.shape or len(one) < 2:
        raise ValueError(f"two: expected as many numbers as in one, at least 2, got {one.shape} and {two.shape}")
    first, second = _ranks(one), _ranks(two)
    first, second = first - first.mean(), second - second.mean()
    length = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float(first @ second) / length if length > 0 else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
