"""`lavit evaluate` on a folder: what is told of captions and answers, and of what cannot be used."""

from __future__ import annotations

import json

import pytest
from bright_images import BrightnessModel, captioned, gray_images, runner, write
from PIL import Image

from lavit.commands import evaluation_summary
from lavit.evaluation import captioning


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(captioning.shutil, "which", lambda name: None)  # Java starts slowly
    return runner(monkeypatch, capsys, tmp_path, BrightnessModel())


@pytest.fixture
def images(tmp_path):
    return gray_images(tmp_path / "data" / "images")


@pytest.fixture
def captions(images):
    return captioned(images)


def test_captions_have_figures_without_any_package(run, images, captions, monkeypatch, tmp_path):
    monkeypatch.setattr(captioning, "find_spec", lambda name: None)
    code, found, out, _ = run("--data", images.parent, "--sheet", tmp_path / "s.png")
    caption = found["tasks"]["caption"]
    words = caption["score"]["words"]
    assert code == 0 and words["exact"] == 1 / 2 and words["guessed_exact"]["value"] == 1 / 8
    # Of the half that is said otherwise no word is right; always the same caption has three words of four of a half.
    assert words["f1"] == 1 / 2 and words["guessed_f1"]["value"] == (1 + 3 * 3 / 4) / 8 and "each" not in words
    assert caption["score"]["by_domain"]["in-domain"].keys() == {"exact", "F1"}
    assert "  exact      0.500  (guessing: 0.125)\n  F1         0.500  (guessing: 0.406)\n" in out
    assert "in-domain: exact 0.5000, F1 0.5000" in out
    assert "pip install -e '.[evaluation]'" in out
    assert caption["item_scores"] == [1] * 4 + [0] * 4  # F1, for want of CIDEr
    assert (tmp_path / "s.png").exists()


def questions(images, count, **fields):
    """About image n, "how n?", with one answer, 10 n."""
    asked = [{"question_id": n, "image_id": n, "question": f"how {n}?"} for n in range(count)]
    told = [{"question_id": n, "answers": [{"answer": str(10 * n)}], **fields} for n in range(count)]
    write(images.parent / "questions.json", {"questions": asked})
    write(images.parent / "answers.json", {"annotations": told})
    for n in range(count):
        Image.open(images / f"{n}.png").save(images / f"{n:012d}.jpg")


def test_one_answer_without_types_is_enough_to_judge(run, images):
    questions(images, 4)
    code, found, out, _ = run("--data", images.parent)
    score = found["tasks"]["vqa"]["score"]
    assert code == 0 and score["overall"] == {"accuracy": 1, "questions": 4, "constant": 1 / 4, "guess": "0"}
    assert score["by_answer_type"] == score["by_question_type"] == {}
    assert "  all        1.000  (guessing: 0.250)\n" in out and "by type" not in out


def test_answers_are_told_by_type_of_question_the_commonest_first(run, images, monkeypatch):
    questions(images, 6)
    told = json.loads((images.parent / "answers.json").read_text())["annotations"]
    kinds = ["how", "what", "how", "what", "how", "why"]
    told = [{**entry, "question_type": kind} for entry, kind in zip(told, kinds, strict=True)]
    write(images.parent / "answers.json", {"annotations": told})
    monkeypatch.setattr(evaluation_summary, "QUESTION_TYPES", 2)
    code, found, out, _ = run("--data", images.parent)
    assert code == 0 and set(found["tasks"]["vqa"]["score"]["by_question_type"]) == {"how", "what", "why"}
    assert (
        "  by type of question:\n    how        1.000  (guessing: 0.333)\n    what       1.000  (guessing: 0.500)\n"
        "    and 1 types of fewer questions"
    ) in out


def test_a_file_of_which_nothing_can_be_used_says_why(run, images):
    questions(images, 5, question_type=3)
    code, _, _, err = run("--data", images.parent)
    assert code == 2 and err.count("\n") == 1
    assert "has no questions that can be used (questions.json); 5 entries left out, questions.json: question 0: " in err
    assert 'expected a text "question_type", got 3; of all 5: 5 × expected a text "question_type", got …' in err
    questions(images, 1, question_type=3)
    write(images.parent / "captions.json", {"images": [{"id": 0, "file_name": "gone.png"}], "annotations": []})
    code, _, _, err = run("--data", images.parent, "--task", "vqa")
    assert code == 2 and "1 entries left out, questions.json: question 0: expected a text" in err


def test_reasons_of_what_is_left_out_are_counted(run, images, captions):
    for number in (1, 3, 5):
        (images / f"{number}.png").unlink()
    content = json.loads(captions.read_text())
    write(captions, {**content, "annotations": [*content["annotations"], {"image_id": 99, "caption": "x"}]})
    code, _, _, err = run("--data", images.parent)
    assert code == 1 and "lavit: 4 left out\n" in err
    assert "lavit: 3 × there is no image file …, 1 × image_id … is not among the images\n" in err
