"""Laws of the questions: their answers are true of the scene, their words give no answer away, and what is said to be
chance is chance."""

from collections import Counter

import numpy as np
import pytest

from lavit.shapes import world as shapes
from lavit.shapes.questions import ANSWERS, KINDS, chance, possible_scenes, questions, read_caption, sentences
from lavit.shapes.world import COLOURS, PLACES, SHAPES, ShapesWorld, caption, name

N = 4000


@pytest.fixture(scope="module")
def asked():
    """Questions of as many scenes as the laws below need; the cells are drawn by the law, not by the renderer."""
    cells, share = possible_scenes()
    rows = cells[np.random.default_rng(5).choice(len(cells), N, p=share)]
    return rows, questions(ShapesWorld(5), rows)


def true_answer(cells, kind, text):
    """Found from the words of the caption, not from the numbers."""
    parts = caption(cells).split(" and ")
    if kind == "count":
        return str(len(parts))
    if kind == "exists":
        what = text.removeprefix("is there a ").removesuffix("?")
        return "yes" if any(part.startswith(f"a {what} ") for part in parts) else "no"
    place = text.removesuffix("?").split(" object ")[1]
    _, colour, shape, *_ = next(part for part in parts if part.endswith(place)).split()
    return {"colour": colour, "shape": shape}[kind]


def test_answers_are_true(asked):
    for cells, four in zip(asked[0].tolist(), asked[1], strict=True):
        assert tuple(q.kind for q in four) == KINDS
        for q in four:
            assert q.answer == true_answer(cells, q.kind, q.text) and q.answer in ANSWERS[q.kind]


def test_every_answer_is_as_frequent_as_chance_says(asked):
    for number, kind in enumerate(KINDS):
        counts = Counter(four[number].answer for four in asked[1])
        assert set(counts) == set(ANSWERS[kind])
        level = chance()[kind]
        assert level.constant == pytest.approx(1 / len(ANSWERS[kind])) and level.uniform == 1 / len(ANSWERS[kind])
        for count in counts.values():  # within five standard deviations
            assert abs(count / N - level.constant) < 5 * (level.constant * (1 - level.constant) / N) ** 0.5
        assert level.as_dict() == {"answer": level.answer, "constant": level.constant, "uniform": level.uniform}


def test_the_words_of_a_question_do_not_tell_its_answer(asked):
    """The best answer to each wording, learned on one half, is worth no more than chance on the other."""
    for number, kind in enumerate(KINDS):
        learned: dict[str, Counter] = {}
        for four in asked[1][: N // 2]:
            learned.setdefault(four[number].text, Counter())[four[number].answer] += 1
        right = [learned[four[number].text].most_common(1)[0][0] == four[number].answer for four in asked[1][N // 2 :]]
        level = chance()[kind].constant
        assert np.mean(right) < level + 5 * (level * (1 - level) / len(right)) ** 0.5


def test_most_of_the_no_are_near_misses(asked):
    near = total = 0
    for cells, four in zip(asked[0].tolist(), asked[1], strict=True):
        if four[3].answer == "no":
            words = four[3].text.removesuffix("?").split()[-2:]
            near += any(word in caption(cells).split() for word in words)
            total += 1
    assert near / total > 0.75  # of random absent kinds two thirds would be; half are chosen to be


def test_questions_depend_on_seed_split_and_number_of_the_scene_alone():
    world = ShapesWorld(3)
    cells = world.scenes(60).cells
    whole = questions(world, cells)
    assert questions(world, cells[17:26], start=17) == whole[17:26]
    assert questions(ShapesWorld(3), cells) == whole
    assert questions(ShapesWorld(4), cells) != whole
    assert questions(ShapesWorld(3, "test"), cells) != whole
    assert questions(world, cells[:0]) == []
    assert len(questions(ShapesWorld(2**62), cells[:1], start=2**40)) == 1


def test_questions_do_not_share_the_scenes_random_words(monkeypatch):
    """Had the two streams one key, a place asked for would follow from what was drawn there."""
    keys = []
    philox = np.random.Philox
    monkeypatch.setattr(np.random, "Philox", lambda key: keys.append(tuple(key.tolist())) or philox(key=key))
    for split in shapes.SPLITS:
        world = ShapesWorld(3, split)
        questions(world, world.scenes(1).cells)
    assert len(set(keys)) == 4


def test_possible_scenes_are_all_that_a_world_draws():
    cells, share = possible_scenes()
    assert share.sum() == pytest.approx(1) and len(np.unique(cells, axis=0)) == len(cells)
    number = {tuple(row): i for i, row in enumerate(cells.tolist())}
    drawn = ShapesWorld(2).scenes(1500).cells
    rows = [number[tuple(row)] for row in drawn.tolist()]
    # The mean probability of the drawn scenes is sum p^2, within five standard deviations.
    expected, spread = share @ share, np.sqrt(share**2 @ share - (share @ share) ** 2)
    assert abs(share[rows].mean() - expected) < 5 * spread / len(rows) ** 0.5


def test_read_caption_is_the_inverse_of_caption():
    cells, _ = possible_scenes()
    for row in cells[::7].tolist():
        assert read_caption(caption(row)) == row
    assert read_caption("an empty picture") == [0, 0, 0, 0]
    assert read_caption(caption([1, 2, 3, 12])) == [1, 2, 3, 12]  # more than a world shows, but a caption


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a red circle top left ",
        " a red circle top left",
        "A red circle top left",
        "a red circle top left.",
        "a red circle top left and",
        "a red  circle top left",
        "a red circle top left a blue square top right",
        "a blue square top right and a red circle top left",
        "a red circle top left and a red circle top left",
        "a red circle top left and a blue square top left",
        "a red circle top left and an empty picture",
        "a nothing top left",
        "a red circle in the middle",
        "nothing",
    ],
)
def test_read_caption_tolerates_nothing_else(text):
    assert read_caption(text) is None


def test_sentences_hold_every_word_that_the_world_says(asked):
    known = {word for sentence in sentences() for word in sentence.split()}
    assert sentences() == sentences()
    said = {word for four in asked[1] for q in four for word in (*q.text.split(), *q.answer.split())}
    assert said | {w for row in asked[0].tolist() for w in caption(row).split()} <= known
    assert {*COLOURS, *SHAPES, *(w for place in PLACES for w in place.split()), name(1).split()[0]} <= known


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: questions(ShapesWorld(), np.ones((2, 3), dtype=int)), r"cells.*\(2, 3\)"),
        (lambda: questions(ShapesWorld(), np.array([[1, 0, 0, 0], [0, 0, 0, 0]]), start=7), "cells.*scene 8"),
        (lambda: questions(ShapesWorld(), np.ones((1, 4), dtype=int), start=-1), "start.*-1"),
    ],
)
def test_errors_name_the_argument(call, named):
    with pytest.raises(ValueError, match=named):
        call()
