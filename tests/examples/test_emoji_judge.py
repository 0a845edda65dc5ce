"""Laws of the judge: true pictures and true captions are right, others are not, and chance is what it is said to be."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.emoji.colours import BACKGROUNDS
from examples.emoji.judge import (
    Parts,
    backgrounds,
    main_colours,
    parse,
    pixels,
    ranks,
    retrieval,
    score_captions,
    score_pictures,
)
from lavit.evaluation.perceptual import psnr

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "emoji"


@pytest.fixture(scope="module")
def true():
    return json.loads((GOLDEN / "world.json").read_text())["pictures"]


@pytest.fixture(scope="module")
def images(true):
    return pixels([Image.open(GOLDEN / entry["file"]) for entry in true])


def test_backgrounds_are_read_from_pictures(images, true):
    assert backgrounds(images) == [entry["background"] for entry in true]
    dimmed = (images * 0.9).astype(np.uint8)
    assert backgrounds(dimmed) == [entry["background"] for entry in true]


def test_main_colours_are_read_from_pictures(images, true):
    clear = [n for n, entry in enumerate(true) if entry["colour_clear"] and not entry["low_contrast"]]
    assert len(clear) > 8
    found = main_colours(images[clear])
    assert [colour.name for colour in found] == [true[n]["colour"] for n in clear]


def test_an_empty_picture_has_a_background_and_no_main_colour():
    empty = np.full((1, 32, 32, 3), BACKGROUNDS["red"], dtype=np.uint8)
    assert backgrounds(empty) == ["red"] and main_colours(empty) == [None]


def test_true_pictures_score_all_and_pictures_in_another_order_do_not(images, true):
    score = score_pictures(images, true, images)
    assert (score.background, score.colour, score.psnr) == (1.0, 1.0, 100.0)
    assert score.coloured == sum(e["colour_clear"] and not e["low_contrast"] and not e["tone"] for e in true)
    wrong = score_pictures(np.roll(images, 7, axis=0), true, images)
    assert wrong.background < 0.5 and wrong.colour < 0.5 and wrong.psnr < 15
    commonest = max(sum(e["background"] == name for e in true) for name in BACKGROUNDS)
    assert score.chance_background == commonest / len(true)


def test_the_psnr_of_a_score_is_the_median_of_the_librarys(images, true):
    other = images // 2
    each = [psnr(image, right) for image, right in zip(other, images, strict=True)]
    assert score_pictures(other, true, images).psnr == np.median(each) != np.mean(each)


def test_pictures_of_other_shapes_are_refused(images, true):
    for wrong in (images[..., :2], images[:, :32], images.astype(np.float32), [images[0], images[0][:32, :32]], []):
        with pytest.raises(ValueError, match="images: expected"):
            pixels(wrong)
    with pytest.raises(ValueError, match="images: expected the shape"):
        score_pictures(images[:, ::2, ::2], true, images)
    with pytest.raises(ValueError, match=f"images: expected {len(true)}, got 1"):
        score_pictures(images[:1], true)


def test_a_rank_is_one_more_than_the_wrong_ones_that_are_as_near():
    gallery = np.array([[1.0, 0], [2, 0], [0, 1], [1, 1], [-1, 0]])
    asked = np.array([[3.0, 0], [1, 1.01], [0, 5], [3, 0]])
    found = ranks(asked, gallery, [[0], [3], [4], [0, 1]])
    assert found.tolist() == [2, 1, 5, 1]  # the second is as near as the first; -1 stands beside a right angle


def test_ranks_do_not_depend_on_the_length_of_features():
    random = np.random.default_rng(0)
    gallery, asked = random.normal(size=(30, 8)), random.normal(size=(30, 8))
    right = [[n] for n in range(30)]
    first = ranks(asked, gallery, right)
    assert (first == ranks(asked * 100, gallery * random.uniform(1, 9, size=(30, 1)), right)).all()
    assert first.min() >= 1 and first.max() <= 30


@pytest.mark.parametrize("gallery, right", [(40, 1), (40, 3), (5, 1)])
def test_chance_is_what_random_orders_score(gallery, right):
    random = np.random.default_rng(1)
    trials = 20000
    orders = random.random((trials, gallery)).argsort(1)
    found = 1 + (orders < right).argmax(1)
    said = retrieval(found, gallery, right)
    for share, chance in ((said.nearest, said.chance_nearest), (said.ten, said.chance_ten)):
        assert abs(share - chance) <= 5 * math.sqrt(chance * (1 - chance) / trials)


def test_what_cannot_be_ranked_is_named():
    rows = np.eye(3)
    with pytest.raises(ValueError, match="features: expected .n, D."):
        ranks(rows, np.eye(2), [[0]] * 3)
    with pytest.raises(ValueError, match="right: expected 3"):
        ranks(rows, rows, [[0]])
    with pytest.raises(ValueError, match="right: expected numbers from 0 to 2 of picture 1"):
        ranks(rows, rows, [[0], [3], [1]])
    with pytest.raises(ValueError, match="finite"):
        ranks(rows * np.nan, rows, [[0]] * 3)
    with pytest.raises(ValueError, match="at least one rank"):
        retrieval(np.array([]), 3)


@pytest.mark.parametrize(
    "caption, parts",
    [
        ("woman firefighter with medium-light skin tone on green", ("woman firefighter", "medium-light", "green")),
        ("Umbrella on ground  on blue.", ("umbrella on ground", "", "blue")),
        ("woman with red hair with dark skin tone on red", ("woman with red hair", "dark", "red")),
        ("cactus", ("cactus", "", "")),
        ("cactus on mars", ("cactus on mars", "", "")),
        ("on green", ("on green", "", "")),
        ("", ("", "", "")),
    ],
)
def test_parts_of_a_caption(caption, parts):
    assert parse(caption) == Parts(*parts)


def test_caption_scores_count_each_part_apart(true):
    said = [entry["caption"] for entry in true]
    right = score_captions(said, true)
    assert right.exact == 1 and right.parts == {"name": 1, "tone": 1, "background": 1}
    toned = [entry["tone"] for entry in true if entry["tone"] not in ("", "none")]
    assert right.chance["tone"] == max(map(toned.count, toned)) / len(toned)
    half = [caption.replace("green", "red").replace("medium", "dark") for caption in said]
    wrong = score_captions(half, true)
    # What is called green is wrong now too, be it a background or a heart.
    assert wrong.parts["background"] == 1 - sum(entry["background"] == "green" for entry in true) / len(true)
    assert wrong.parts["tone"] == 1 - toned.count("medium") / len(toned)
    assert wrong.parts["name"] == 1 - sum("green" in entry["name"] for entry in true) / len(true)
    assert wrong.exact == sum(a == b for a, b in zip(half, said, strict=True)) / len(said)
    with pytest.raises(ValueError, match="said: expected 20"):
        score_captions(said[1:], true)
