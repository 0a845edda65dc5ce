"""Laws of the scene score: it counts objects at their places, and its chance levels are those of guessing."""

import numpy as np
import pytest

from lavit.shapes.questions import possible_scenes
from lavit.shapes.scores import SceneScore, scene_chance, score_scenes


def test_objects_are_right_missing_or_extra():
    asked = np.array([[1, 0, 0, 2], [0, 5, 0, 0], [3, 4, 0, 0]])
    found = np.array([[1, 0, 0, 2], [5, 0, 0, 0], [3, 6, 7, 0]])
    report = score_scenes(found, asked)
    assert report.score == SceneScore(exact=1 / 3, recall=3 / 5, precision=3 / 6)
    assert (report.scenes, report.right, report.missing, report.extra) == (3, 3, 2, 3)
    assert report.as_dict()["score"] == {"exact": 1 / 3, "recall": 3 / 5, "precision": 3 / 6}
    assert report.score.as_dict() == report.as_dict()["score"]


def test_nothing_found_scores_nothing():
    assert score_scenes(np.zeros((2, 4)), np.ones((2, 4))).score == SceneScore(0, 0, 0)


def test_chance_is_what_guessing_scores():
    """By hand: a cell holds a kind with probability 1/2 * 1/12; the likeliest scenes hold one object, 1/3 * 1/4 * 1/12;
    the mean number of objects is 2, and a constant scene has up to 3."""
    constant, other = scene_chance()
    assert constant.exact == pytest.approx(1 / 144) and constant.precision == pytest.approx(1 / 24)
    assert constant.recall == pytest.approx(3 / 24 / 2)
    assert other.recall == other.precision == pytest.approx(1 / 24)
    assert other.exact == pytest.approx(sum(1 / 9 / ways for ways in (4 * 12, 6 * 144, 4 * 1728)))


def test_guessing_scores_chance():
    cells, share = possible_scenes()
    draw = np.random.default_rng(3)
    asked, guessed = (cells[draw.choice(len(cells), 40_000, p=share)] for _ in range(2))
    for found, level in [
        (guessed, scene_chance()[1]),
        (np.tile([1, 0, 0, 0], (40_000, 1)), SceneScore(1 / 144, 1 / 48, 1 / 24)),
        (np.tile([1, 2, 3, 0], (40_000, 1)), SceneScore(1 / 3 / 4 / 1728, 1 / 16, 1 / 24)),
    ]:
        got = score_scenes(found, asked).score
        # Five standard deviations of a share of scenes, of 80 000 objects asked for, of at least 40 000 found.
        assert abs(got.exact - level.exact) <= 5 * (level.exact / 40_000) ** 0.5
        assert abs(got.recall - level.recall) < 5 * (level.recall / 80_000) ** 0.5
        assert abs(got.precision - level.precision) < 5 * (level.precision / 40_000) ** 0.5


@pytest.mark.parametrize(
    "found, asked, named",
    [
        (np.ones((2, 4)), np.ones((3, 4)), r"found.*\(3, 4\).*\(2, 4\)"),
        (np.ones((0, 4)), np.ones((0, 4)), "asked.*n >= 1"),
        (np.ones((2, 3)), np.ones((2, 3)), r"asked.*\(2, 3\)"),
        (np.ones((2, 4)), np.zeros((2, 4)), "asked.*an object"),
    ],
)
def test_errors_name_the_argument(found, asked, named):
    with pytest.raises(ValueError, match=named):
        score_scenes(found, asked)
