"""Laws of the shapes world: a scene depends on its seed, split and number alone, and its truth is in its pixels."""

import re

import numpy as np
import pytest

from lavit.shapes import world as shapes
from lavit.shapes.world import ShapesWorld


def test_a_slice_equals_the_same_scenes_of_the_whole():
    whole = ShapesWorld(seed=3).scenes(40)
    part = ShapesWorld(seed=3).scenes(9, start=17)
    assert np.array_equal(part.images, whole.images[17:26])
    assert np.array_equal(part.cells, whole.cells[17:26])


def test_chunked_drawing_equals_unchunked(monkeypatch):
    whole = ShapesWorld(seed=3).scenes(40)
    monkeypatch.setattr(shapes, "_CHUNK", 7)
    assert np.array_equal(ShapesWorld(seed=3).scenes(40).images, whole.images)


def test_seed_and_split_give_other_scenes():
    worlds = [ShapesWorld(seed=0), ShapesWorld(seed=1), ShapesWorld(seed=0, split="test")]
    first, second, third = (world.scenes(200).images for world in worlds)
    assert not (first == second).all((1, 2, 3)).any()
    assert not (first == third).all((1, 2, 3)).any()


def test_every_kind_place_and_count_is_equally_frequent():
    scenes = ShapesWorld(seed=0).scenes(6000)
    counts = np.bincount(scenes.objects, minlength=4)
    assert counts[0] == 0 and len(counts) == 4
    # Five standard deviations of a binomial count.
    assert abs(counts[1:] - 2000).max() < 5 * (6000 * 2 / 9) ** 0.5
    kinds = np.bincount(scenes.cells.ravel(), minlength=shapes.NUM_CLASSES)[1:]
    assert abs(kinds - 1000).max() < 5 * 1000**0.5
    filled = (scenes.cells != shapes.EMPTY).sum(0)
    assert abs(filled - 3000).max() < 5 * (6000 / 4) ** 0.5


def test_pixels_show_the_colour_in_filled_cells_and_grey_in_empty_ones():
    scenes = ShapesWorld(seed=5).scenes(300)
    grid = scenes.images.reshape(300, 2, 16, 2, 16, 3).transpose(0, 1, 3, 2, 4, 5).reshape(300, 4, 16, 16, 3) / 255
    far = abs(grid - 0.5).max((2, 3, 4))
    assert far[scenes.cells == shapes.EMPTY].max() < 0.08  # five standard deviations of the noise
    assert far[scenes.cells != shapes.EMPTY].min() > 0.25
    pixels = grid[scenes.cells != shapes.EMPTY].reshape(-1, 256, 3)
    inside = abs(pixels - 0.5).max(2).argmax(1)
    colour = np.linalg.norm(pixels[np.arange(len(pixels)), inside, None] - shapes.RGB, axis=-1).argmin(-1)
    assert np.array_equal(colour, (scenes.cells[scenes.cells != shapes.EMPTY] - 1) % 4)


def test_shapes_of_one_radius_differ_and_cover_their_area():
    cells = np.array([[1, 5, 9, 0]])
    centre, radius = np.full((1, 4, 2), 8, dtype=np.float32), np.full((1, 4), 6, dtype=np.float32)
    image = shapes.render(cells, centre, radius)
    cover = (abs(image - 0.5).max(-1) / abs(shapes.RGB[0] - 0.5).max()).reshape(2, 16, 2, 16).sum((1, 3)).ravel()
    circle, square, triangle = np.pi * 36, 10.8**2, 10.4**2 / 2  # by the formulas in pixels
    assert cover == pytest.approx([circle, square, triangle, 0], rel=0.03, abs=1e-3)


def test_objects_stay_within_their_cell():
    scenes = ShapesWorld(seed=5).scenes(300)
    grid = scenes.images.reshape(300, 2, 16, 2, 16, 3).transpose(0, 1, 3, 2, 4, 5).reshape(300, 4, 16, 16, 3) / 255
    frame = np.concatenate([grid[:, :, 0], grid[:, :, -1], grid[:, :, :, 0], grid[:, :, :, -1]], axis=2)
    assert abs(frame - 0.5).max() < 0.08


def test_patches_show_their_cell_or_nothing():
    scenes = ShapesWorld(seed=5).scenes(100)
    patches = scenes.patches(4).reshape(100, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(100, 4, 16)
    assert np.array_equal(patches.max(2), scenes.cells)
    assert np.isin(patches, [0]).any() and ((patches == 0) | (patches == scenes.cells[:, :, None])).all()
    # The smallest object is 8 pixels wide, the largest 13: two to four patches a side, edges included.
    covered = (patches > 0).sum(2)[scenes.cells > 0]
    assert covered.min() >= 3 and covered.max() <= 16


def test_captions_name_what_stands_where():
    assert shapes.caption([1, 0, 0, 7]) == "a red circle top left and a blue square bottom right"
    assert shapes.caption([0, 0, 0, 0]) == "an empty picture"
    scenes = ShapesWorld(seed=2).scenes(50)
    assert len(set(scenes.captions)) > 40
    for text, cells in zip(scenes.captions, scenes.cells.tolist(), strict=True):
        assert text.count(" a ") + 1 == sum(kind != 0 for kind in cells)


def test_any_number_of_scenes_from_anywhere():
    assert len(ShapesWorld().scenes(0)) == 0
    assert len(ShapesWorld(seed=2**62).scenes(1, start=2**40)) == 1


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: ShapesWorld(split="val"), "split.*val"),
        (lambda: ShapesWorld(seed=-1), "seed.*-1"),
        (lambda: ShapesWorld().scenes(-2), "count.*-2"),
        (lambda: ShapesWorld().scenes(1).patches(5), "patch_size.*5"),
        (lambda: shapes.name(13), "kind.*13"),
        (lambda: shapes.caption([0, 1]), "cells.*2"),
    ],
)
def test_errors_name_the_argument(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.parametrize("seed", [1.5, 1.0, np.float64(2), float("nan"), "1", None])
def test_a_seed_that_is_not_whole_is_refused_not_cut(seed):
    with pytest.raises(TypeError, match=re.escape(f"seed: expected a whole number, got {seed!r}")):
        ShapesWorld(seed)


def test_a_whole_seed_of_any_type_is_the_same_world():
    world = ShapesWorld(np.int64(3))
    assert type(world.seed) is int and np.array_equal(world.scenes(2).images, ShapesWorld(3).scenes(2).images)
