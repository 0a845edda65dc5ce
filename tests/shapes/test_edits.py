"""A change of a scene is one cell, asked for in words that say exactly it; everything else stays to the bit."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from lavit.data.sequences import Sequencing
from lavit.kernels import Loss, Segment
from lavit.shapes.edits import edits, edits_source, instruction, instructions
from lavit.shapes.questions import questions
from lavit.shapes.world import CELL, CELLS, EMPTY, GRID, NUM_CLASSES, PLACES, Scenes, ShapesWorld, name

WORLD = ShapesWorld(3)
SCENES = WORLD.scenes(400)
PAIRS = edits(WORLD, 400)


def follow(cells: list[int], text: str) -> list[int]:
    """What somebody would do who reads the words."""
    place = next(i for i in sorted(range(CELLS), key=lambda i: -len(PLACES[i])) if text.endswith(PLACES[i]))
    what = next(kind for kind in range(1, NUM_CLASSES) if name(kind) in text)
    if text.startswith("take away the "):
        assert cells[place] == what
        what = EMPTY
    return [*cells[:place], what, *cells[place + 1 :]]


def test_the_words_lead_from_one_scene_to_the_other_and_back():
    for before, after, text, undoing in zip(
        PAIRS.before.cells.tolist(), PAIRS.after.cells.tolist(), PAIRS.texts, PAIRS.undoing, strict=True
    ):
        assert before != after and follow(before, text) == after and follow(after, undoing) == before
    assert set(PAIRS.texts) | set(PAIRS.undoing) <= set(instructions())


def test_the_other_cells_stay_to_the_bit():
    def grid(scenes: Scenes) -> np.ndarray:
        cut = scenes.images.reshape(-1, GRID, CELL, GRID, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
        return cut.reshape(len(scenes), CELLS, -1)

    same = (grid(PAIRS.before) == grid(PAIRS.after)).all(2)
    assert np.array_equal(same, PAIRS.before.cells == PAIRS.after.cells)


def test_scenes_stay_scenes_of_the_world_and_every_change_occurs():
    assert set(PAIRS.after.objects.tolist()) == {1, 2, 3}
    more = PAIRS.after.objects - PAIRS.before.objects
    assert {int(n): (more == n).mean() > 0.15 for n in np.unique(more)} == {-1: True, 0: True, 1: True}
    places = (PAIRS.before.cells != PAIRS.after.cells).argmax(1)
    assert np.bincount(places, minlength=CELLS).min() > 0.2 * len(PAIRS)


def test_a_change_depends_on_world_split_and_number_alone():
    part = edits(WORLD, 30, start=50)
    assert part.texts == PAIRS.texts[50:80] and np.array_equal(part.after.images, PAIRS.after.images[50:80])
    assert edits(ShapesWorld(3, "test"), 400).texts != PAIRS.texts != edits(ShapesWorld(4), 400).texts
    assert np.array_equal(part.before.images, SCENES.images[50:80])
    assert len(edits(WORLD, 0)) == 0 and edits(WORLD, 0).wordless[1].shape == (0, CELLS)


def test_changes_of_scenes_that_are_drawn_already_are_the_same():
    given = edits(WORLD, 30, start=50, scenes=SCENES[50:80])
    assert given.before.images.base is SCENES.images
    assert given.texts == PAIRS.texts[50:80] and np.array_equal(given.after.images, PAIRS.after.images[50:80])
    with pytest.raises(ValueError, match="scenes: expected 30, got 29"):
        edits(WORLD, 30, scenes=SCENES[:29])


def test_the_random_words_of_scenes_questions_and_edits_stay_what_they_were():
    def digest(text: str) -> str:
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    pairs = edits(WORLD, 400, start=7)
    assert digest(repr(pairs.texts + pairs.undoing)) == "316bcf48a8a2dd5c"
    assert digest(repr(questions(WORLD, pairs.before.cells, 7))) == "08643d3ee70408a9"
    assert hashlib.blake2b(pairs.after.cells.tobytes(), digest_size=8).hexdigest() == "cc645b80eecf6e3a"


def test_nothing_is_likelier_without_the_words_than_the_guess():
    pairs = edits(WORLD, 6000)
    same, likeliest = pairs.wordless
    assert np.array_equal(same, pairs.before.cells) and not (same == pairs.after.cells).all(1).any()
    right = (likeliest == pairs.after.cells).all(1)
    objects = pairs.before.objects
    for count, share in ((1, 1 / 44), (2, 1 / 8), (3, 1 / 6)):  # 4 places x 11 kinds; 4 x 1/2; 3 x 1/2
        assert right[objects == count].mean() == pytest.approx(share, abs=0.025)


def test_both_directions_of_a_pair_are_samples():
    source = edits_source(PAIRS, 1000, Sequencing(lambda text: list(text.encode()), 2, predict_prompts=False))
    assert len(source) == 2 * len(PAIRS)
    for pair in (0, 7, 399):
        there, back = source[2 * pair], source[2 * pair + 1]
        assert there.segments == back.segments == (Segment.FEATURES, Segment.TEXT, Segment.CODES)
        assert there.images == (pair, 1000 + pair) and back.images == (1000 + pair, pair)
        assert bytes(there.texts[0]).decode() == PAIRS.texts[pair]
        assert bytes(back.texts[0]).decode() == PAIRS.undoing[pair]
        assert there.loss == (Loss.NONE, Loss.NONE, Loss.ALL)
    other = edits_source(PAIRS, 1001, source.sequencing)
    assert other.fingerprint != source.fingerprint == edits_source(PAIRS, 1000, source.sequencing).fingerprint


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="one cell other than before, got 2"):
        instruction([1, 2, 0, 0], [2, 1, 0, 0])
    with pytest.raises(ValueError, match="one cell other than before, got 0"):
        instruction([1, 2, 0, 0], [1, 2, 0, 0])
    with pytest.raises(ValueError, match="count and start: expected no negative number"):
        edits(WORLD, 4, start=-1)
    for cells in (np.zeros((2, 4), np.int64), np.full((1, 4), NUM_CLASSES), np.zeros((1, 3), np.int64)):
        with pytest.raises(ValueError, match=r"cells: expected shape \(1, 4\)"):
            WORLD.scenes(1, cells=cells)


def test_the_world_draws_its_own_cells_as_ever():
    assert np.array_equal(WORLD.scenes(20, cells=SCENES.cells[:20]).images, SCENES.images[:20])
