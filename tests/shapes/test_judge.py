"""Laws of the program that reads generated images: it names what is drawn, by the pixels alone, and nothing where
nothing of the world is to be seen."""

import time

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lavit.shapes.judge import UNCLEAR, Rates, SceneReader, drawn_chance, score_cells
from lavit.shapes.questions import possible_scenes
from lavit.shapes.world import CELLS, NUM_CLASSES, ShapesWorld, render

SCENES = ShapesWorld(11, "test").scenes(1500)
READER = SceneReader()


def as_float(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 255


def test_true_scenes_are_read_right_and_leave_far_less_unexplained_than_allowed():
    """1500 scenes, none misread: with 99 % confidence at least 99.69 % of all are read right (0.01 ** (1 / 1500))."""
    assert (READER.read(SCENES.images) == SCENES.cells).all()
    strict = SceneReader(limit=0.1)
    assert (strict.read(SCENES.images) == SCENES.cells).all()


def test_mild_blur_and_noise_do_not_matter():
    some = SCENES[:400]
    blurred = np.stack([np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(0.7))) for i in some.images])
    noise = np.random.default_rng(0).normal(0, 0.025, blurred.shape)
    read = READER.read(np.clip(as_float(blurred) + noise, 0, 1))
    assert (read == some.cells).all(1).mean() > 0.99


def test_every_kind_is_read_at_every_place():
    cells = np.arange(NUM_CLASSES)[:, None].repeat(CELLS, 1)
    centre = np.full((NUM_CLASSES, CELLS, 2), 8, np.float32)
    for radius in (4, 5.3, 6.5):
        images = render(cells, centre, np.full((NUM_CLASSES, CELLS), radius, np.float32))
        assert (READER.read(images) == cells).all()


def test_what_is_no_object_of_the_world_is_unclear():
    images, there = as_float(SCENES[:300].images), SCENES[:300].cells != 0
    pale = READER.read(0.5 + 0.5 * (images - 0.5))
    assert (pale[there] == UNCLEAR).mean() > 0.95 and (pale[~there] == 0).all()
    mixed = READER.read((images + images[::-1]) / 2)
    colour = (SCENES[:300].cells - 1) % 4
    assert (mixed[there & there[::-1] & (colour != colour[::-1])] == UNCLEAR).all()
    noise = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    assert (READER.read(noise) == UNCLEAR).all()


def test_the_limit_says_how_much_may_stay_unexplained():
    some = SCENES[:100]
    faded = 0.5 + 0.8 * (as_float(some.images) - 0.5)  # lacks 0.2, whose square is 0.0625 of what is there
    assert (READER.read(faded) == some.cells).all(1).mean() > 0.99
    assert (SceneReader(limit=0.04).read(faded)[some.cells != 0] == UNCLEAR).all()
    assert (SceneReader(limit=1).read(faded) == READER.read(faded)).all(1).mean() > 0.99


def test_a_cell_is_read_from_its_own_pixels_and_an_image_without_its_neighbours():
    some = SCENES[:7]
    images = some.images.copy()
    images[:, 16:, :16] = np.random.default_rng(1).integers(0, 256, (7, 16, 16, 3))
    read = READER.read(images)
    assert (read[:, [0, 1, 3]] == some.cells[:, [0, 1, 3]]).all() and (read[:, 2] == UNCLEAR).all()
    assert (READER.read(images[::-1]) == read[::-1]).all()
    assert (np.concatenate([READER.read(images[i : i + 1]) for i in range(7)]) == read).all()


def test_bytes_floats_and_pictures_are_read_alike():
    some = SCENES[:20]
    assert (READER.read(as_float(some.images)) == some.cells).all()
    assert (READER.read([Image.fromarray(image) for image in some.images]) == some.cells).all()
    assert READER.read([]).shape == READER.read(some.images[:0]).shape == (0, CELLS)


def test_a_thousand_images_are_read_in_seconds():
    READER.read(SCENES.images[:2])
    begin = time.process_time()
    READER.read(SCENES.images[:1000])
    assert time.process_time() - begin < 15  # measured: 0.8; a loop over images or jitters takes far more


def test_rates_count_scenes_objects_and_cells():
    asked = np.array([[1, 0, 0, 2], [0, 5, 0, 0], [3, 4, 0, 0]])
    found = np.array([[1, 0, 0, 2], [UNCLEAR, 5, 0, 0], [3, 6, 7, 0]])
    drawn = score_cells(found, asked)
    assert drawn.rates == Rates(scene=1 / 3, object_recall=4 / 5, cell=9 / 12)
    assert (drawn.scene, drawn.object_recall, drawn.cell) == (1 / 3, 4 / 5, 9 / 12)
    assert drawn.unclear == 1 / 12 and drawn.scenes == 3
    shown = drawn.as_dict()
    assert shown["rates"] == drawn.rates.as_dict() and set(shown["constant"]) == set(shown["rates"])


def test_score_reads_the_images_and_not_the_truth():
    some = SCENES[:100]
    assert READER.score(some.images, some.cells).rates == Rates(1, 1, 1)
    shifted = np.roll(some.cells, 1, 0)
    assert READER.score(some.images, shifted) == score_cells(some.cells, shifted)


def test_guessing_scores_chance():
    cells, share = possible_scenes()
    draw = np.random.default_rng(5)
    asked, guessed = (cells[draw.choice(len(cells), 40_000, p=share)] for _ in range(2))
    constant, other = drawn_chance()
    # Half of the cells are empty; five standard deviations of a share of 160 000 cells, which are independent enough
    # for four of a scene to count as one.
    assert abs((asked == 0).mean() - constant.cell) < 5 * 0.5 / 40_000**0.5
    assert constant.cell == pytest.approx(0.5) and other.cell == pytest.approx(0.25 + 12 / 24**2)
    got = score_cells(guessed, asked)
    assert abs(got.cell - other.cell) < 5 * 0.5 / 40_000**0.5
    assert abs(got.object_recall - other.object_recall) < 5 * (other.object_recall / 80_000) ** 0.5
    assert constant.scene == pytest.approx(1 / 144)


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: SceneReader(limit=0), "limit.*0"),
        (lambda: READER.read(np.zeros((2, 16, 32, 3), np.uint8)), r"images.*\(2, 16, 32, 3\)"),
        (lambda: READER.read(np.zeros((2, 32, 32, 3), np.int64)), "images.*int64"),
        (lambda: READER.read(np.full((2, 32, 32, 3), 200.0)), "images.*200.0 in image 0"),
        (lambda: READER.read(np.full((2, 32, 32, 3), np.nan)), "images.*nan in image 0"),
        (lambda: READER.score(SCENES.images[:2], SCENES.cells[:3]), r"found.*\(3, 4\)"),
    ],
)
def test_errors_name_the_argument(call, named):
    with pytest.raises(ValueError, match=named):
        call()
