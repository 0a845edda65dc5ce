"""`lavit evaluate` on folders as the data sets publish them: NoCaps, VizWiz, images alone; interrupted and gone on
with, with a sheet, and with pixels drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from bright_images import BrightnessModel, captioned, gray_images, runner, write
from PIL import Image
from tiny_models import save_whole

from lavit.cli import main
from lavit.commands import evaluate_run as evaluate
from lavit.commands import evaluation_pixels
from lavit.evaluation import captioning
from lavit.evaluation.tasks import ANSWERABLE


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """Its start takes longer than all the rest, and what it computes is judged elsewhere."""
    monkeypatch.setattr(captioning.shutil, "which", lambda name: None)


@pytest.fixture
def model():
    return BrightnessModel()


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, model):
    return runner(monkeypatch, capsys, tmp_path, model)


@pytest.fixture
def images(tmp_path):
    return gray_images(tmp_path / "data" / "images")


@pytest.fixture
def captions(images):
    return captioned(images)


def ten(text):
    return [{"answer": text}] * 10


@pytest.fixture
def vizwiz(images):
    entries = [
        {"image": f"{n}.png", "question": f"how {n}?", "answers": ten("unanswerable" if n == 3 else str(10 * n))}
        | {"answer_type": "other" if n % 2 else "number", "answerable": 1}
        for n in range(6)
    ]
    return write(images.parent / "val.json", entries)


# ------------------------------------------------------------------------------------------------------------- captions


def test_domains_of_nocaps_are_judged_by_themselves_too(run, images, captions):
    pytest.importorskip("pycocoevalcap.cider.cider", reason="pip install 'lavit[evaluation]'")
    code, found, out, _ = run("--data", images.parent)
    score = found["tasks"]["caption"]["score"]
    assert code == 0 and set(score["by_domain"]) == {"in-domain", "out-domain"}
    assert score["by_domain"]["in-domain"]["BLEU-1"] != score["scores"]["BLEU-1"] > 0
    assert "  in-domain: BLEU-1 " in out
    scores = found["tasks"]["caption"]["item_scores"]
    assert len(scores) == 8 and min(scores[:4]) > max(scores[4:]) and np.mean(scores) == pytest.approx(
        score["scores"]["CIDEr"]
    )


def test_files_of_other_names_and_places_are_given_by_options(run, images, captions, tmp_path):
    table = write(tmp_path / "results.token", "".join(f"{n}.png#{k}\ta thing {n}\n" for n in range(3) for k in "01"))
    code, found, _, _ = run("--data", tmp_path, "--images", images, "--captions", table)
    named = [row["image_id"] for row in found["tasks"]["caption"]["results"]]
    assert code == 0 and named == ["0.png", "1.png", "2.png"]


def test_captions_of_a_test_set_are_written_and_not_judged(run, images):
    write(images.parent / "captions.json", {"images": [{"id": n, "file_name": f"{n}.png"} for n in range(3)]})
    code, found, out, _ = run("--data", images.parent)
    assert code == 0 and found["tasks"]["caption"]["score"] is None and "not judged" in out
    assert found["tasks"]["caption"]["results"][2] == {"image_id": 2, "caption": "a picture of thing 20"}
    code, _, _, err = run("--data", images.parent, "--task", "generate")
    assert code == 2 and "has no captions that can be used, which ask for images" in err


# ------------------------------------------------------------------------------------------------------------ questions


def test_vizwiz_is_asked_first_whether_it_can_be_answered(run, images, vizwiz, model):
    model.unsure = (30, 40)
    code, found, _, _ = run("--data", images.parent, "--questions", vizwiz, "--batch-size", 4)
    vqa = found["tasks"]["vqa"]
    assert code == 0 and {ANSWERABLE.format(f"how {n}?") for n in range(6)} < set(model.asked)
    answers = ["0", "10", "20", "unanswerable", "unanswerable", "50"]
    assert vqa["results"] == [{"image": f"{n}.png", "answer": text} for n, text in enumerate(answers)]
    assert vqa["score"]["overall"]["accuracy"] == pytest.approx(5 / 6)
    assert vqa["item_scores"] == [1, 1, 1, 1, 0, 1]
    assert vqa["score"]["by_answer_type"]["number"]["accuracy"] == pytest.approx(2 / 3)


def test_other_questions_are_asked_as_they_are(run, images, model):
    asked = [{"question_id": n, "image_id": n, "question": f"how {n}?"} for n in range(3)]
    write(images.parent / "questions.json", {"questions": asked})
    for n in range(3):
        Image.open(images / f"{n}.png").save(images / f"{n:012d}.jpg")
    code, found, _, _ = run("--data", images.parent)
    assert code == 0 and model.asked == ["how 0?", "how 1?", "how 2?"] and list(found["tasks"]) == ["vqa"]


def test_answers_and_peoples_are_lemmatised_before_they_are_compared(run, images, vizwiz, monkeypatch):
    words = ("--data", images.parent, "--questions", vizwiz)
    plain = run(*words)[1]["tasks"]["vqa"]
    assert plain["score"]["overall"]["accuracy"] == pytest.approx(5 / 6)
    monkeypatch.setattr(evaluate, "lemmatizer", lambda: lambda text: text.replace("30", "unanswerable").upper())
    found = run(*words, "--lemmatize")[1]["tasks"]["vqa"]
    assert [row["answer"] for row in found["results"]] == ["0", "10", "20", "UNANSWERABLE", "40", "50"]
    assert found["score"]["overall"]["accuracy"] == 1

    def missing():
        raise ImportError("spaCy is not installed")

    monkeypatch.setattr(evaluate, "lemmatizer", missing)
    code, found, _, err = run(*words, "--lemmatize")
    assert code == 2 and found is None and "spaCy is not installed" in err


# --------------------------------------------------------------------------------------------------------- interruption


def test_the_same_command_goes_on_and_another_is_refused(run, images, captions, model, tmp_path):
    words = ("--data", images.parent, "--batch-size", 2)
    whole = run(*words)[1]
    model.seen, model.stop = [], 50
    assert run(*words)[0] == 130 and model.seen == [0, 10, 20, 30, 40]
    assert (tmp_path / "out.json.progress").is_dir() and not (tmp_path / "out.json").exists()
    model.seen, model.stop = [], None
    code, found, _, err = run(*words, "--beams", 3)
    assert code == 2 and model.seen == [] and "beams: null, now 3" in err and "--restart" in err
    (images / "6.png").write_bytes((images / "6.png").read_bytes() + b"more")
    assert run(*words)[0] == 2 and model.seen == []  # an image is another one
    (images / "6.png").write_bytes((images / "6.png").read_bytes()[:-4])
    code, found, _, _ = run(*words)
    assert code == 0 and model.seen == [40, 50, 60, 70] and found == whole
    assert not (tmp_path / "out.json.progress").exists()


@pytest.mark.parametrize("field, other", [("question", "why?"), ("answers", ten("no"))])
def test_another_question_or_answer_is_another_run(run, images, vizwiz, model, field, other):
    words = ("--data", images.parent, "--questions", vizwiz, "--batch-size", 2)
    model.stop = 50
    assert run(*words)[0] == 130
    model.seen, model.stop = [], None
    write(vizwiz, [entry | {field: other} for entry in json.loads(vizwiz.read_text())])
    assert run(*words)[0] == 2 and model.seen == []


def test_restart_forgets_and_a_model_that_changed_is_noticed(run, images, captions, model, tmp_path):
    words = ("--data", images.parent, "--batch-size", 2)
    model.stop = 50
    run(*words)
    model.seen, model.stop = [], None
    write(tmp_path / "model" / "config.json", {})
    code, _, _, err = run(*words)
    assert code == 2 and "model: [], now [[\"config.json\"" in err
    code, found, _, _ = run(*words, "--restart")
    assert code == 0 and len(model.seen) == 8


def test_of_a_model_s_folder_only_what_is_written_there_does_not_count(run, images, captions, model, tmp_path):
    place = tmp_path / "model"
    words = ("--data", images.parent, "--batch-size", 2, "--output", place / "con", "--sheet", place / "s.png")
    model.stop = 50
    assert run(*words, output=False)[0] == 130
    model.seen, model.stop = [], None
    write(place / "config.json", {})  # begins as the output does
    assert run(*words, output=False)[0] == 2 and model.seen == []
    (place / "config.json").unlink()
    write(place / "s.png", "of an earlier run")
    assert run(*words, output=False)[0] == 0 and model.seen == [40, 50, 60, 70]


# --------------------------------------------------------------------------------------------------------------- sheet


def test_the_sheet_shows_the_worst_and_the_best(run, images, vizwiz, model, tmp_path, monkeypatch):
    from lavit.report import sheet

    drawn = []
    draw = sheet.draw_sheet
    monkeypatch.setattr(sheet, "draw_sheet", lambda sections: drawn.extend(sections) or draw(sections))
    model.unsure = (10,)
    words = ("--data", images.parent, "--questions", vizwiz, "--sheet", tmp_path / "s.png", "--sheet-items", 2)
    assert run(*words)[0] == 0
    (worst_title, worst), (best_title, best) = drawn
    assert worst_title == "vqa: the worst of 6" and best_title == "vqa: the best"
    assert [item.score for item in worst] == [0, 0] and [item.score for item in best] == [1, 1]
    assert worst[0].pictures == [str(images / "1.png")] and worst[0].told == "accuracy 0.00"
    assert worst[0].words == ["how 1?", "answer: unanswerable", "people: 10"]
    assert Image.open(tmp_path / "s.png").width > 300


def test_without_scores_of_items_there_is_no_sheet_and_a_line_says_so(run, images, tmp_path):
    write(images.parent / "val.json", [{"image": "1.png", "question": "how?"}])
    words = ("--data", images.parent, "--questions", images.parent / "val.json", "--sheet", tmp_path / "s.png")
    code, _, _, err = run(*words)
    assert code == 0 and "no sheet: no item has a score of its own" in err and not (tmp_path / "s.png").exists()


# ------------------------------------------------------------------------------------------------------------ bad input


def test_folders_that_cannot_be_used_are_told_in_a_line(run, images, tmp_path):
    (tmp_path / "hollow").mkdir()
    cases = [
        (["--data", tmp_path / "hollow"], "there is no folder"),
        (["--data", tmp_path / "hollow", "--split", "test"], "has no captions, whose split it could be"),
        (["--data", images, "--task", "vqa"], "has no questions that can be used"),
        (["--data", images, "--questions", tmp_path / "q.json"], "q.json: no such file"),
        (["--data", images, "--captions", write(tmp_path / "c.json", "{")], "c.json: is not JSON"),
        (["--data", images, "--captions", write(tmp_path / "e.json", {"images": []})], "has no captions that can be"),
        (["--data", images, "--answers", write(tmp_path / "a.json", {})], "expected questions.json beside it"),
        (["--data", images, "--captions", write(tmp_path / "d.token", "9.png#0\tx\n")], "there is no image file"),
        (["--data", images, "--samples", 0], "--samples: expected at least 1"),
    ]
    for words, message in cases:
        code, found, out, err = run(*words)
        assert code == 2 and found is None and message in err and err.count("\n") == 1, (words, err)


def test_outputs_take_the_place_of_nothing_that_is_read(run, images, captions, vizwiz, tmp_path):
    folder, other = images.parent, write(tmp_path / "other.json", captions.read_text())
    for words, message in (
        (["--data", folder, "--output", captions], "--output: "),
        (["--data", folder, "--captions", other, "--output", other], "--output: "),
        (["--data", folder, "--questions", vizwiz, "--output", vizwiz], "--output: "),
        (["--data", folder, "--sheet", images / "3.png"], "3.png is one of the images to be read"),
        (["--data", images, "--sheet", images / "new.png"], "new.png is among the images that are read"),
    ):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        code, _, _, err = run(*words, output=False)
        assert code == 2 and message in err and err.count("\n") == 1, (words, err)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_output_takes_the_place_of_no_file_of_a_model(pixels, images, whole, tmp_path):
    config = whole / "config.json"
    before = config.read_bytes()
    assert main(["evaluate", "--model", str(whole), "--data", str(images), "--output", str(config)]) == 2
    assert config.read_bytes() == before


def test_what_is_left_out_is_counted_and_not_told_without_end(run, images, captions, tmp_path):
    listed = [{"id": n, "file_name": f"{n}.png"} for n in range(400)]
    rows = [{"id": n, "image_id": n, "caption": "text"} for n in range(400)]
    write(captions, {"images": listed, "annotations": rows})
    code, found, _, err = run("--data", images.parent)
    assert code == 1 and len(found["left_out"]) == 392 and err.count("lavit: skipped") == evaluate.TOLD
    assert f"lavit: 392 left out, 50 of them told here, all in {tmp_path / 'out.json'}\n" in err
    write(captions, {"images": listed[:10], "annotations": rows[:10]})
    assert "lavit: 2 left out\n" in run("--data", images.parent)[3]


# --------------------------------------------------------------------------------------------------------------- pixels


class Colours(torch.nn.Module):
    """Stands in for Inception."""

    num_features = 3

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, images):
        return torch.stack([image.double().mean((1, 2)) for image in images])


class Brightness:
    """Stands in for CLIP."""

    def __call__(self, prompts, images):
        return [float(np.asarray(image).mean()) for image in images]

    def similarities(self, first, second):
        return torch.zeros(len(first))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_whole(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def judges(monkeypatch):
    monkeypatch.setattr(evaluation_pixels, "load_inception", lambda *_: Colours())
    monkeypatch.setattr(evaluation_pixels, "find_clip", lambda given: given)
    monkeypatch.setattr(evaluation_pixels, "ClipScorer", lambda folder, device: Brightness())


@pytest.fixture
def pixels(capsys, tmp_path, whole):
    def pixels(*words):
        target = tmp_path / "px.json"
        target.unlink(missing_ok=True)
        more = ["--model", whole, "--device", "cpu", "--output", target, "--steps", 2, *words]
        code = main(["evaluate", *map(str, more)])
        said = capsys.readouterr()
        return code, json.loads(target.read_text())["tasks"] if target.exists() else None, said.out, said.err

    return pixels


def test_a_folder_is_drawn_for_its_captions_and_judged(pixels, judges, images, captions, tmp_path):
    words = ("--data", images.parent, "--task", "generate", "--samples", 2, "--prompts", 5, "--batch-size", 3)
    words += ("--statistics", tmp_path / "true.npz", "--sheet", tmp_path / "s.png")
    code, found, out, _ = pixels(*words)
    task = found["generate"]
    assert code == 0 and task["evaluated"] == 5 and task["score"]["true_images"] == 8
    assert task["settings"] == {"samples": 2, "guidance": 2.0, "top_k": 200, "min_tokens": 1}
    assert all((tmp_path / "px.json.pictures" / "generate" / f"{n}.png").is_file() for n in range(5))
    assert set(task["score"]["figures"]) == {"FID", "CLIP score", "CLIP score of all samples", "tokens"}
    assert "FID  " in out and (tmp_path / "true.npz").is_file() and (tmp_path / "s.png").is_file()
    for path in images.iterdir():  # what is known of them is not read again
        if path.stem not in {str(row["image_id"]) for row in task["results"]}:
            path.write_bytes(b"x" * path.stat().st_size)
    again = pixels(*words, "--batch-size", 16)[1]["generate"]
    assert again["score"]["figures"]["FID"] == pytest.approx(task["score"]["figures"]["FID"], rel=1e-6)
    code, _, _, err = pixels(*words, "--resize", "clean")
    assert code == 2 and "true.npz was made with resize tensorflow, now it is clean" in err


def test_images_alone_are_reconstructed(pixels, judges, images, whole, tmp_path):
    (images / "9.png").write_bytes(b"no image at all")
    code, found, out, err = pixels("--data", images)
    task = found["reconstruct"]
    assert code == 1 and f"skipped {images / '9.png'}: not an image" in err and list(found) == ["reconstruct"]
    assert task["evaluated"] == 8 and "LPIPS" in task["score"]["skipped"]
    assert {"rFID", "PSNR", "SSIM", "CLIP similarity"} == set(task["score"]["figures"])
    assert "codes used" in out and "tokens an image" in out and "  skipped: LPIPS: AlexNet's weights" in out
    # A pixel pipeline is all that it needs.
    words = ["--pixels", whole / "pixels", "--data", images, "--task", "reconstruct", "--steps", 2, "--device", "cpu"]
    assert main(["evaluate", *map(str, words), "--output", str(tmp_path / "two.json")]) == 1
    again = json.loads((tmp_path / "two.json").read_text())["tasks"]["reconstruct"]
    assert again["results"][3]["psnr"] == pytest.approx(task["results"][3]["psnr"])


def test_images_drawn_are_neither_lost_nor_taken_for_the_folders_own(judges, whole, images, tmp_path, capsys):
    words = ["--model", whole, "--data", images, "--device", "cpu", "--steps", 2]
    for more, message in (
        (["--sheet", tmp_path / "s.png"], "--sheet: of images drawn needs --output F"),
        (["--output", images / "o.json"], "o.json is among the images that are read"),
    ):
        assert main(["evaluate", *map(str, [*words, *more])]) == 2
        assert message in capsys.readouterr().err
    assert len(list(images.iterdir())) == 8
    assert main(["evaluate", *map(str, words)]) == 0 and "PSNR" in capsys.readouterr().out


def test_an_output_in_the_models_own_folder_goes_on_as_well(run, images, captions, model, tmp_path):
    (tmp_path / "model").mkdir()
    words = ("--data", images.parent, "--batch-size", 2, "--output", tmp_path / "model" / "o.json")
    model.stop = 50
    assert run(*words, output=False)[0] == 130
    model.seen, model.stop = [], None
    assert run(*words, output=False)[0] == 0 and model.seen == [40, 50, 60, 70]


def test_networks_that_are_absent_are_told_with_their_option(pixels, images, captions, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    words = ("--data", images.parent, "--task", "generate", "--prompts", 2)
    code, _, _, err = pixels(*words)
    assert code == 2 and "--samples: the best of 4 is taken by CLIP: " in err and "--clip DIR" in err
    code, found, out, _ = pixels(*words, "--samples", 1)
    assert code == 0 and set(found["generate"]["score"]["figures"]) == {"tokens"}
    assert "  skipped: FID: the weights of FID's Inception are not there: " in out and "--inception FILE" in out
    for option in ("--inception", "--clip"):
        code, found, _, err = pixels(*words, "--samples", 1, option, tmp_path / "none")
        assert code == 2 and found is None and f"{option}: there is no f" in err
    code, found, _, err = pixels("--data", images.parent, "--task", "reconstruct", "--lpips", tmp_path / "none")
    assert code == 2 and found is None and "AlexNet's weights, for LPIPS, are not there" in err
