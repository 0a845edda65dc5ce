"""Laws of the sheet: the worst and the best are on it, each once, and every picture where it belongs."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lavit.report.sheet import GAP, MARGIN, SIDE, draw_sheet, extremes


def item(score, *pictures, words=("a", "b")):
    return SimpleNamespace(score=score, told=f"score {score}", pictures=list(pictures), words=list(words))


def scores(items):
    return [one.score for one in items]


def test_worst_and_best_are_the_ends_and_none_is_both():
    items = [item(score) for score in (3, 1, 4, 1.5, 9, 2, 6)]
    worst, best = extremes(items, 2)
    assert scores(worst) == [1, 1.5] and scores(best) == [9, 6]
    worst, best = extremes(items, 9)
    assert scores(worst) == [1, 1.5, 2, 3] and scores(best) == [9, 6, 4]
    assert extremes([], 3) == ([], []) and scores(extremes(items[:1], 3)[0]) == [3]
    equal = [item(0, str(n)) for n in range(4)]
    assert [one.pictures[0] for one in extremes(equal, 1)[0]] == ["0"]


@pytest.fixture
def colour(tmp_path):
    def colour(name, size=(5, 5)):
        path = tmp_path / f"{name}{size[0]}.png"
        Image.new("RGB", size, name).save(path)
        return str(path)

    return colour


def at(sheet, row, column, wide=1, place=0, top=0):
    """The pixel in the middle of a picture."""
    left = MARGIN + column * (wide * SIDE + (wide - 1) * 4 + GAP) + place * (SIDE + 4)
    return sheet.getpixel((left + SIDE // 2, top + MARGIN + 34 + SIDE // 2))


def test_pictures_stand_in_their_order_and_keep_their_proportions(colour):
    rows = [item(1, colour("red", (10, 4)), colour("blue")), item(2, colour("green", (300, 500)), colour("red"))]
    sheet = draw_sheet([("title", rows)])
    assert at(sheet, 0, 0, 2) == (255, 0, 0) and at(sheet, 0, 0, 2, 1) == (0, 0, 255)
    assert at(sheet, 0, 1, 2) == (0, 128, 0)
    pixels = np.asarray(sheet)
    red = (pixels[:, : MARGIN + SIDE] == (255, 0, 0)).all(-1).sum()
    assert red == SIDE * round(SIDE * 0.4)


def test_a_sheet_grows_with_its_sections_and_says_what_is_empty_or_unreadable(colour, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"x")
    one = draw_sheet([("title", [item(1, colour("red"))])])
    two = draw_sheet([("title", [item(1, colour("red"))]), ("none", [])])
    broken = draw_sheet([("title", [item(1, str(tmp_path / "broken.png"))])])
    assert two.height > one.height and two.width == one.width == broken.width
    frame = (MARGIN + 1, MARGIN + 35, MARGIN + SIDE - 1, MARGIN + 34 + SIDE - 1)
    seen = {tuple(pixel) for row in np.asarray(broken.crop(frame)) for pixel in row.tolist()}
    assert len(seen) > 1 and (255, 0, 0) not in seen


def test_words_stay_in_their_cell(colour):
    long = [item(1, colour("white"), words=["word " * 400]), item(2, colour("white"), words=["$\u202e\ud800 x"])]
    short = [item(1, colour("white")), item(2, colour("white"))]
    sheet, plain = draw_sheet([("title", long)]), draw_sheet([("title", short)])
    assert sheet.size == plain.size
    edge = MARGIN + SIDE + 1  # between the two cells nothing is written
    assert (np.asarray(sheet)[MARGIN + 34 :, edge : edge + GAP - 3] == 255).all()
    below = MARGIN + 34 + SIDE + 4 + 6 * 15 + 3
    assert (np.asarray(sheet)[below:] == 255).all()
