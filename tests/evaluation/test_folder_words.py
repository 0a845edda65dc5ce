"""Captions and answers of a folder, item by item, by a model that says what it is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from described_folder import write_pictures

from lavit.data.annotations import CaptionItem, VQAItem
from lavit.evaluation import captioning
from lavit.evaluation.folder_words import give_answers, say_captions


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    monkeypatch.setattr(captioning.shutil, "which", lambda name: None)


def model(texts):
    said = iter(texts)
    return SimpleNamespace(
        caption=lambda images, processor, **settings: [next(said) for _ in images],
        answer=lambda images, questions, processor, **settings: [next(said) for _ in images],
    )


@pytest.fixture
def paths(tmp_path):
    return write_pictures(tmp_path / "images", 4)


def test_captions_are_judged_by_their_words_beside_the_best_that_is_always_said(paths):
    true = [("a red cat.", "one cat"), ("a dog",), ("a dog",), ("A Cow!",)]
    items = [CaptionItem(i, path, texts) for i, (path, texts) in enumerate(zip(paths, true, strict=True))]
    found = say_captions(model(["One  cat", "a cat", "a dog.", "the big cow"]), None, items)
    assert [one.exact for one in found.said] == [True, False, True, False] and found.exact == 0.5
    assert [one.f1 for one in found.said] == [1, 0, 1, pytest.approx(2 / 3)]
    assert found.f1 == pytest.approx(2 / 3) and found.guessed_exact == found.guessed_f1 == 0.5  # "a dog" always
    assert [one.nearest for one in found.said] == ["one cat", "a dog", "a dog", "A Cow!"]


def test_answers_are_judged_by_kind_beside_the_usual_answer_to_it(paths):
    def item(i, kind, answer):
        return VQAItem(i, i, paths[i], f"question {i}?", (answer,) * 10, kind, "other")

    items = [item(0, "colour", "red"), item(1, "colour", "red"), item(2, "colour", "blue"), item(3, "count", "2")]
    found = give_answers(model(["red", "blue", "blue", "3"]), None, items)
    assert [one.accuracy for one in found.answered] == [1, 0, 1, 0] and found.accuracy == 0.5
    assert found.kinds == {"colour": (pytest.approx(2 / 3), pytest.approx(2 / 3), 3), "count": (0, 1, 1)}
    assert found.constant == pytest.approx(0.75)
    assert found.answered[1].usual == "red"


def test_a_picture_that_cannot_be_read_costs_no_other(paths):
    paths[1].write_bytes(b"no picture")
    items = [CaptionItem(i, path, ("a dog",)) for i, path in enumerate(paths)]
    found = say_captions(model(["a dog"] * 3), None, items, batch_size=1)
    assert [one.path for one in found.said] == [paths[0], paths[2], paths[3]]
    assert [item.name for item in found.skipped] == [str(paths[1])]
    asked = [VQAItem(i, i, path, "what?", (str(i),) * 10, "", "") for i, path in enumerate(paths)]
    answers = give_answers(model(["0", "2", "3"]), None, asked, batch_size=1)
    assert [one.accuracy for one in answers.answered] == [1, 1, 1] and answers.kinds == {}
