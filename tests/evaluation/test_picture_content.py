"""What there is to see in a picture, and rank correlation: known cases, and scipy's where it is installed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from lavit.evaluation.folder_sample import draw_sample
from lavit.evaluation.picture_content import edge_density, jpeg_size, rank_correlation


def test_an_even_picture_has_no_edge_and_a_step_has_two_columns_of_them():
    assert edge_density(Image.new("RGB", (20, 10), (250, 3, 99))) == 0
    step = np.zeros((10, 20, 3), np.uint8)
    step[:, 10:] = 255
    assert edge_density(Image.fromarray(step)) == 2 / 20
    assert edge_density(Image.fromarray(step.transpose(1, 0, 2))) == 2 / 20


def test_an_edge_between_colours_of_one_brightness_is_an_edge():
    halves = Image.new("RGB", (20, 10), (200, 0, 0))
    halves.paste((0, 102, 0), (10, 0, 20, 10))
    grey = np.asarray(halves.convert("L"))
    assert abs(int(grey.max()) - int(grey.min())) <= 1 and edge_density(halves) == 2 / 20


def test_a_slope_is_an_edge_from_its_threshold_on():
    def ramp(slope):
        row = (np.arange(9) * slope).astype(np.uint8)
        return Image.fromarray(np.broadcast_to(row[None, :, None], (5, 9, 3)).copy())

    # At both borders, where the picture goes on as it is, half the slope is left.
    assert edge_density(ramp(26)) == 7 / 9 == edge_density(ramp(26).rotate(180))  # 26 of 255 is more than EDGE
    assert edge_density(ramp(25)) == 0


def test_noise_needs_more_bytes_than_an_even_picture():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert jpeg_size(Image.fromarray(noise)) > 2 * jpeg_size(Image.new("RGB", (32, 32)))


def test_ranks_of_any_rising_function_agree():
    x = np.random.default_rng(1).normal(size=50)
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1)
    assert rank_correlation(x, -(x**3)) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    assert rank_correlation([0, 5, 5, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_equal_values_share_a_rank_as_in_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(2)
    for _ in range(5):
        x, y = rng.integers(0, 6, (2, 40))
        assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_where_nothing_can_be_ranked_there_is_no_number():
    assert math.isnan(rank_correlation([1, 2], [2, 1]))
    assert math.isnan(rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]))
    assert math.isnan(rank_correlation([1, 2, math.nan], [1, 2, 3]))
    with pytest.raises(ValueError, match="second: expected one value for each of 2, got 3"):
        rank_correlation([1, 2], [1, 2, 3])


def test_a_smaller_sample_is_among_a_larger_one_in_the_order_of_all():
    items = list("abcdefghij")
    five, three = draw_sample(items, 5, 0), draw_sample(items, 3, 0)
    assert set(three) < set(five) and five == sorted(five) and len(five) == 5
    assert draw_sample(items, None, 0) == items == draw_sample(items, 99, 0)
    assert draw_sample(items, 5, 1) != five
