"""Token maps: kept patches keep their colours, dropped ones lose them, and everything fits for any size of image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lavit.report.token_map import OUTLINE, draw_sheet, draw_token_map


def centres(picture, grid):
    """The pixel in the middle of every patch, (h * w, 3)."""
    pixels = np.asarray(picture).astype(int)
    ys = ((np.arange(grid[0]) + 0.5) / grid[0] * picture.height).astype(int)
    xs = ((np.arange(grid[1]) + 0.5) / grid[1] * picture.width).astype(int)
    return pixels[np.ix_(ys, xs)].reshape(-1, 3)


@pytest.mark.parametrize("size", [(32, 32), (512, 512), (3000, 1500)])
@pytest.mark.parametrize("grid", [(8, 8), (16, 16), (3, 5)])
def test_kept_patches_keep_their_colour_and_dropped_ones_are_pale_and_grey(size, grid):
    keep = torch.arange(grid[0] * grid[1]) % 3 == 0
    red = (200, 20, 20)
    picture = draw_token_map(Image.new("RGB", size, red), keep, grid)
    seen = centres(picture, grid)
    assert (seen[keep] == red).all()
    dropped = seen[~keep]
    assert (dropped.max(1) == dropped.min(1)).all()
    assert (dropped >= 168).all()


def test_outline_is_drawn_around_kept_patches_only():
    def outlined(keep):
        picture = draw_token_map(Image.new("RGB", (64, 64), "blue"), keep, (4, 4))
        return (np.asarray(picture) == OUTLINE).all(-1)

    assert not outlined(np.zeros(16, bool)).any()
    one = np.zeros(16, bool)
    one[5] = True
    drawn = np.argwhere(outlined(one))
    quarter = 448 // 4
    assert drawn.min() >= quarter and drawn.max() <= 2 * quarter
    assert outlined(np.ones(16, bool)).mean() < 0.05  # thin


def test_small_images_keep_their_pixels_visible_and_large_ones_become_handy():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    picture = draw_token_map(Image.fromarray(noise), [False] * 4, (2, 2))
    assert picture.size == (448, 448)
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) <= 256  # no smoothing: no new greys
    assert draw_token_map(Image.new("RGB", (4000, 1000)), [True], (1, 1)).size == (1024, 256)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 700), st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_any_size_grid_and_selection_can_be_drawn(width, height, rows, columns, random):
    keep = np.array([random.random() < 0.5 for _ in range(rows * columns)])
    tokens = [random.randrange(16384) for _ in range(int(keep.sum()))]
    picture = draw_token_map(Image.new("L", (width, height)), keep, (rows, columns), tokens)
    assert picture.mode == "RGB" and 448 <= max(picture.size) <= 1024


def test_tokens_are_written_where_there_is_room():
    image = Image.new("RGB", (64, 64), "blue")
    keep = np.ones(16, bool)
    plain = np.asarray(draw_token_map(image, keep, (4, 4)))
    written = np.asarray(draw_token_map(image, keep, (4, 4), range(16)))
    changed = (plain != written).any(-1)
    patches = changed.reshape(4, 112, 4, 112).any((1, 3))
    assert patches.all()
    crowded = np.ones(64 * 64, bool)
    assert np.array_equal(
        np.asarray(draw_token_map(image, crowded, (64, 64))),
        np.asarray(draw_token_map(image, crowded, (64, 64), np.arange(64 * 64))),
    )


def test_what_does_not_fit_together_is_named():
    image = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match=r"keep: expected shape \(4,\) for the grid \(2, 2\), got \(5,\)"):
        draw_token_map(image, [True] * 5, (2, 2))
    with pytest.raises(ValueError, match="tokens: expected one for each of 4 kept patches"):
        draw_token_map(image, [True] * 4, (2, 2), [1, 2])
    with pytest.raises(ValueError, match="grid"):
        draw_token_map(image, [], (0, 2))
    with pytest.raises(ValueError, match="labels"):
        draw_sheet([image], [])


def test_sheet_shows_every_map_with_its_label():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    maps = [Image.new("RGB", (300, 100 + 50 * i), c) for i, c in enumerate(colours)]
    sheet = draw_sheet(maps, ["a rather long file name of an image 0123456789.png"] * 5, tile=120)
    pixels = np.asarray(sheet)
    for colour in colours:
        assert (pixels == colour).all(-1).sum() > 120 * 30
    assert max(sheet.size) < 1000


def test_a_label_of_letters_in_parts_looks_as_one_of_whole_letters():
    maps = [Image.new("RGB", (64, 64), "white")]
    whole, parts = (draw_sheet(maps, [word]) for word in ("\u00e9l\u00e8ve", "e\u0301le\u0300ve"))
    assert whole.tobytes() == parts.tobytes()
