"""Laws of what a picture's content is measured by."""

import numpy as np
import pytest
from PIL import Image

from examples.emoji.content import edge_density, jpeg_sizes, rank_correlation


def test_edges_are_where_the_brightness_steps():
    flat = np.full((8, 8, 3), 90, dtype=np.uint8)
    split = flat.copy()
    split[:, 4:] = 200
    faint = flat.copy()
    faint[:, 4:] = 110  # 20 of 255 is less than a tenth
    # One of the seven steps to the right of each row, in seven rows.
    assert edge_density(np.stack([flat, split, split.transpose(1, 0, 2), faint])).tolist() == [0, 7 / 49, 7 / 49, 0]


def test_noise_has_more_bytes_than_a_plain_picture():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    flat, random = jpeg_sizes([Image.new("RGB", (32, 32)), Image.fromarray(noise)])
    assert random > 2 * flat > 0


def test_rank_correlation_is_spearmans():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 21, 400]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [5, 4, -1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4], [3, 3, 3, 3]) is None
    # Equal numbers share the mean of their ranks.
    pearson = np.corrcoef([1, 2.5, 2.5, 4], [2, 1, 3, 4])[0, 1]
    assert rank_correlation([0, 1, 1, 2], [5, 4, 6, 7]) == pytest.approx(pearson)
    with pytest.raises(ValueError, match="as many numbers"):
        rank_correlation([1, 2], [1, 2, 3])
