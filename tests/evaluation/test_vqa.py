"""Laws of the VQA accuracy: the numbers that a hand computes from the rules."""

from dataclasses import dataclass

import numpy as np
import pytest

from lavit.evaluation.vqa import (
    GuessedShare,
    Share,
    cut_answer,
    evaluate_vqa,
    normalize_answer,
    score_scene_answers,
    vqa_accuracy,
)
from lavit.shapes.questions import Question, chance, possible_scenes, questions
from lavit.shapes.world import ShapesWorld


@dataclass(frozen=True)
class Item:
    question_id: int
    answers: tuple[str, ...]
    question_type: str = "what"
    answer_type: str = "other"


@pytest.mark.parametrize(
    "text, normal",
    [
        ("A red Circle", "red circle"),
        ("the   an a", ""),
        ("two", "2"),
        ("None", "0"),
        ("ten o'clock.", "10 o'clock"),
        ("eleven", "eleven"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("5.", "5"),
        ("U.S.A.", "usa"),
        ("100,978", "100978"),
        ("100,978 (about)", "100978 about"),
        ("1,000 well-known", "1000 wellknown"),  # a comma between digits: nothing instead of spaces, everywhere
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("well-known", "well known"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("2:50 pm", "2:50 pm"),
        ("girl's", "girl's"),
        ("dont", "don't"),
        ("Isnt it?", "isn't it"),
        ("couldntve", "couldntve"),  # two apostrophes missing are no known form
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("twas", "'twas"),
        ("im", "im"),  # the rules' table has it in capitals alone, which lower-case text never meets
        ("yes\n", "yes"),
        ("on\tit", "on it"),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_the_rules_say(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize("same, accuracy", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_accuracy_is_the_mean_over_the_ten_subsets_of_nine(same, accuracy):
    """With n of ten: n subsets miss one of them. n = 3: (3 * 2/3 + 7 * 1) / 10."""
    truths = ["red"] * same + ["blue"] * (10 - same)
    assert vqa_accuracy("red", truths) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    "people, shares",
    [
        (1, [0, 1]),
        # One of two: left out, none is left; the other left out, all that are left. Of three n / 2 is full.
        (2, [0, 1 / 2, 1]),
        (3, [0, (0 + 1 / 2 + 1 / 2) / 3, (1 / 2 + 1 / 2 + 1) / 3, 1]),
        (4, [0, (0 + 3 * 1 / 3) / 4, (2 * 1 / 3 + 2 * 2 / 3) / 4, (3 * 2 / 3 + 1) / 4, 1]),
    ],
)
def test_what_all_have_answered_is_right_however_many_they_are(people, shares):
    found = [vqa_accuracy("red", ["red"] * same + ["blue"] * (people - same)) for same in range(people + 1)]
    assert found == pytest.approx(shares)


@pytest.mark.parametrize("people", [1, 2, 3])
def test_answers_of_few_are_always_normalised(people):
    assert vqa_accuracy("a red one", ["Red 1."] * people) == 1 and vqa_accuracy("blue", ["Red"] * people) == 0


def test_both_sides_are_normalised_where_the_truths_differ():
    truths = ["A dog", "dog.", "the dog", "Dog", *["cat"] * 6]
    assert vqa_accuracy("dog", truths) == 1 and vqa_accuracy("a  CAT!", truths) == 1
    assert vqa_accuracy("2", ["two"] * 9 + ["2"]) == 1 and vqa_accuracy("None", ["none"] * 9 + ["0"]) == 1


def test_nothing_but_space_is_normalised_where_all_truths_are_the_same():
    assert vqa_accuracy("2", ["two"] * 10) == 0 and vqa_accuracy("a dog", ["a dog"] * 9 + ["a dog\n"]) == 1
    assert vqa_accuracy("\ttwo\n", [" two"] * 10) == 1 and vqa_accuracy("Two", ["two"] * 10) == 0


@pytest.mark.parametrize(
    "text, cut",
    [
        (" red\nQuestion: what", "red"),
        ("red, and blue", "red"),
        ("red. It is", "red"),
        ("\n red", "red"),
        ("a red circle", "a red circle"),
        ("3.5", "3"),
        ("two dogs question: why", "two dogs"),
        ("red Long answer: it is", "red"),
        ("Red Question: why", "red question: why"),
        ("Long Answer: Red", "long answer: red"),
        ("question: what", ""),
        ("", ""),
        (",", ""),
    ],
)
def test_generated_answers_are_cut_as_the_release_cuts_them(text, cut):
    assert cut_answer(text) == cut


def test_scores_by_type_are_means_of_their_questions():
    items = [
        Item(1, ("yes",) * 10, "is", "yes/no"),
        Item(2, ("yes",) * 3 + ("no",) * 7, "is", "yes/no"),
        Item(3, ("two",) * 10, "how many", "number"),
        Item(4, ("red",) * 10),
    ]
    score = evaluate_vqa(items, {1: "yes", 2: "yes", 3: "3"})
    # The usual answers are yes, no and two; always the first of them scores 1, 0.9 and 0.
    assert score.overall == Share(pytest.approx((1 + 0.9 + 0) / 3), 3, pytest.approx(1.9 / 3), "yes")
    number, yes_no = Share(0, 1, 1, "two"), Share(pytest.approx(0.95), 2, pytest.approx(0.95), "yes")
    assert score.by_question_type == {"how many": number, "is": yes_no}
    assert score.by_answer_type == {"number": number, "yes/no": yes_no}
    assert score.unanswered == [4]
    assert score.as_dict()["by_answer_type"]["number"] == {
        "accuracy": 0,
        "questions": 1,
        "constant": 1,
        "guess": "two",
    }


def test_the_guess_is_the_commonest_answer_of_its_questions_and_scores_as_any_answer():
    items = [Item(1, ("Two",)), Item(2, ("two",)), Item(3, ("two",)), Item(4, ("yes",) * 10), Item(5, ("yes",) * 10)]
    overall = evaluate_vqa(items, dict.fromkeys(range(1, 6), "no")).overall
    assert (overall.guess, overall.constant, overall.accuracy) == ("two", 3 / 5, 0)


def test_questions_without_a_type_count_in_the_whole_alone():
    items = [Item(1, ("yes",), "", ""), Item(2, ("no",), "is", "")]
    score = evaluate_vqa(items, {1: "yes", 2: "yes"})
    assert score.overall.accuracy == 0.5 and score.overall.questions == 2
    assert set(score.by_question_type) == {"is"} and score.by_answer_type == {}


def test_answers_about_scenes_are_counted_by_kind_beside_chance():
    asked = [Question("count", "", "2"), Question("count", "", "3"), Question("exists", "", "no")]
    report = score_scene_answers(asked, ["two", "1", "No."])
    third = pytest.approx(1 / 3)
    assert report.by_kind == {"count": GuessedShare(0.5, 2, third, third), "exists": GuessedShare(1, 1, 0.5, 0.5)}
    mean = pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)
    assert report.overall == GuessedShare(pytest.approx(2 / 3), 3, mean, mean)
    assert report.as_dict()["by_kind"]["exists"]["accuracy"] == 1


def test_the_best_guess_scores_chance():
    cells, share = possible_scenes()
    cells = cells[np.random.default_rng(0).choice(len(cells), 2000, p=share)]
    asked = [question for four in questions(ShapesWorld(2), cells) for question in four]
    report = score_scene_answers(asked, [chance()[q.kind].answer for q in asked])
    for kind in report.by_kind.values():  # within five standard deviations
        assert abs(kind.accuracy - kind.constant) < 5 * (kind.constant / kind.questions) ** 0.5


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: vqa_accuracy("red", []), "truths.*at least one person"),
        (lambda: vqa_accuracy("red", "red red"), "truths"),
        (lambda: evaluate_vqa([Item(7, ())], {7: "red"}), "question 7.*truths"),
        (lambda: evaluate_vqa([Item(7, ("red",) * 10)], {8: "red"}), "answers: question 8"),
        (lambda: evaluate_vqa([Item(7, ("red",) * 10)] * 2, {7: "red"}), "question 7 is there twice"),
        (lambda: evaluate_vqa([Item(7, ("red",) * 10)], {}), "answers.*none"),
        (lambda: score_scene_answers([Question("count", "", "2")], []), "answers.*1 questions.*got 0"),
        (lambda: score_scene_answers([], []), "answers.*0 questions"),
    ],
)
def test_errors_name_the_item(call, named):
    with pytest.raises(ValueError, match=named):
        call()
