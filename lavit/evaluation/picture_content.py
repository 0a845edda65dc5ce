"""How much there is to see in a picture, without a model: edges, and what JPEG needs; and rank correlation with it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

EDGE = 0.1
"""A pixel is on an edge where a colour, in [0, 1], changes by at least so much from pixel to pixel."""
QUALITY = 90
"""Of JPEG."""


def edge_density(picture: Image.Image) -> float:
    """Share of the pixels on an edge: where Sobel's gradient of red, green or blue is at least ``EDGE``. Beyond the
    border the picture goes on as it is there."""
    colours = np.pad(np.asarray(picture.convert("RGB"), dtype=np.float64) / 255, ((1, 1), (1, 1), (0, 0)), mode="edge")
    # Sobel's weights over 8: a ramp has its slope.
    smooth_y = colours[:-2] + 2 * colours[1:-1] + colours[2:]
    smooth_x = colours[:, :-2] + 2 * colours[:, 1:-1] + colours[:, 2:]
    across, down = (smooth_y[:, 2:] - smooth_y[:, :-2]) / 8, (smooth_x[2:] - smooth_x[:-2]) / 8
    return float((np.hypot(across, down).max(-1) >= EDGE).mean())


def jpeg_size(picture: Image.Image, quality: int = QUALITY) -> int:
    """Bytes of the picture as JPEG, its colours at full resolution."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=quality, subsampling=0, optimize=True)
    return file.tell()


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing their mean rank. NaN for fewer than three pairs,
    where one side has one value only, and where a value is NaN. ValueError for another number of values."""
    if len(first) != len(second):
        raise ValueError(f"second: expected one value for each of {len(first)}, got {len(second)}")
    x, y = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if len(x) < 3 or np.isnan(x).any() or np.isnan(y).any() or x.min() == x.max() or y.min() == y.max():
        return float("nan")
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
