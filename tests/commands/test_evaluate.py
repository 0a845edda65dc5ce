"""`lavit evaluate`: every item is judged once or named with the reason, and what is right and wrong is counted so."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from processes import on_two_processes
from tiny_models import save_language_model, tokenizer

from lavit.cli import main
from lavit.commands import evaluate_run as evaluate
from lavit.commands.evaluation_options import parse
from lavit.evaluation import tasks
from lavit.evaluation.captioning import METRICS
from lavit.evaluation.tasks import seed_of
from lavit.shapes.edits import edits
from lavit.shapes.questions import questions as scene_questions
from lavit.shapes.scores import score_scenes
from lavit.shapes.world import ShapesWorld
from lavit.threads import on as on_threads
from lavit.tokenizer import LaVITImageProcessor

SCENES = 7


class Knowing:
    """A model that knows what is in the pictures it is shown, by their pixels, and is wrong about some."""

    def __init__(self, said: dict[bytes, str], answers: dict[tuple[bytes, str], str], drawn: dict[str, int]) -> None:
        self.said, self.answers, self.drawn = said, answers, drawn
        self.config = SimpleNamespace(image_objective="classify")
        self.visual_tokenizer = tokenizer()
        self.processor = SimpleNamespace(image_processor=LaVITImageProcessor(32))
        self.images = np.empty((0, 32, 32, 3), np.uint8)
        self.asked: list[dict] = []
        self.seeds: dict[str, int] = {}
        self.changed: dict[str, np.ndarray] = {}  # what is drawn for the words of a change; else the picture as it was

    def caption(self, images, processor, **settings):
        self.asked.append(settings)
        if any(np.asarray(image).tobytes() not in self.said for image in images):
            raise ValueError("never seen")
        return [self.said[np.asarray(image).tobytes()] for image in images]

    def answer(self, images, questions, processor, **settings):
        self.asked.append(settings)
        return [self.answers[np.asarray(i).tobytes(), q] for i, q in zip(images, questions, strict=True)]

    def generate_tokens(self, prompts, processor, *, seeds, **settings):
        self.asked.append(settings)
        if isinstance(prompts[0], list):  # a picture and what to change in it
            shown = np.stack([self.changed.get(text, np.asarray(image)) for image, text in prompts])
            pixels = self.processor.image_processor(shown)
        else:
            self.seeds |= dict(zip(prompts, seeds, strict=True))
            pixels = self.processor.image_processor(self.images[[self.drawn[prompt] for prompt in prompts]])
        return SimpleNamespace(codes=self.visual_tokenizer.encode(pixels, deterministic=True).ragged())


def of_shapes(seed: int, wrong: int) -> Knowing:
    """Knows the scenes of the test, but takes each of the first ``wrong`` for the next one."""
    world = ShapesWorld(seed, "test")
    scenes = world.scenes(SCENES)
    asked = scene_questions(world, scenes.cells)
    seen = [scene + 1 if scene < wrong else scene for scene in range(SCENES)]
    pixels = [image.tobytes() for image in scenes.images]
    answers = {}
    for scene, each in enumerate(asked):
        for place, one in enumerate(each):
            answers[pixels[scene], one.text] = f" {asked[seen[scene]][place].answer}" if scene < wrong else one.answer
    said = {pixels[scene]: scenes.captions[seen[scene]] for scene in range(SCENES)}
    model = Knowing(said, answers, {scenes.captions[scene]: seen[scene] for scene in range(SCENES)})
    model.images = scenes.images
    return model


HASTY = partial(tasks.decoded_probe, steps=30)
"""How well the probe reads plays no part here."""


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(tasks, "decoded_probe", HASTY)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command on a model; its exit code, what it wrote to the file, and the two outputs."""

    def run(model, *words):
        monkeypatch.setattr(evaluate, "load_lavit", lambda folder, device: (model, model.processor))
        target = tmp_path / "out.json"
        target.unlink(missing_ok=True)
        (tmp_path / "x").mkdir(exist_ok=True)
        given = ["--model", tmp_path / "x", "--output", target, "--device", "cpu", *words]
        code = main(["evaluate", *map(str, given)])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, json.loads(target.read_text()) if target.exists() else None, said.out, said.err

    return run


# --------------------------------------------------------------------------------------------------------- shapes world


def test_who_knows_the_scenes_is_right_about_all_of_them_and_chance_stands_beside(run):
    model = of_shapes(5, wrong=0)
    code, found, out, _ = run(model, "--data", "shapes", "--limit", SCENES, "--seed", 5, "--probe-scenes", 64)
    assert code == 0 and list(found["tasks"]) == ["caption", "vqa", "generate", "edit"]
    assert found["left_out"] == []
    caption, vqa, drawn, changed = (found["tasks"][name] for name in found["tasks"])
    perfect = {"exact": 1.0, "recall": 1.0, "precision": 1.0}
    assert caption["score"]["objects"]["score"] == perfect and caption["score"]["readable"] == 1
    assert 0 < caption["score"]["objects"]["constant"]["exact"] < 0.1
    assert caption["evaluated"] == SCENES and vqa["evaluated"] == 4 * SCENES
    kinds = vqa["score"]["by_kind"]
    assert set(kinds) == {"count", "colour", "shape", "exists"}
    assert all(kind["accuracy"] == 1 and 0.2 < kind["constant"] < 0.6 for kind in kinds.values())
    # The true tokens were drawn: what is missed, the tokenizer or the probe has lost.
    assert drawn["score"]["objects"] == drawn["score"]["true_tokens"]
    assert drawn["score"]["tokens"]["drawn"] == drawn["score"]["tokens"]["true"] > 0
    pairs = edits(ShapesWorld(5, "test"), SCENES)
    assert [row["prompt"] for row in changed["results"]] == pairs.texts
    # It draws the scenes as they were: what is read is right where these are read right and were not to change.
    as_they_were = score_scenes(np.array([row["cells"] for row in drawn["results"]]), pairs.after.cells)
    assert changed["score"]["objects"] == as_they_were.as_dict() != drawn["score"]["objects"]
    unchanged = score_scenes(pairs.before.cells, pairs.after.cells).score
    assert changed["score"]["wordless"]["recall"] >= unchanged.recall > 0.3
    assert f"guessing: {changed['score']['wordless']['recall']:.3f}" in out[out.index("edit: ") :]
    assert "exact      1.000  (guessing: 0.0" in out and "tokens of the true images" in out
    assert model.asked[0]["min_new"] == 1 and model.asked[-1]["min_tokens"] == 1


def test_who_draws_the_changed_scenes_reaches_what_their_own_tokens_do(run):
    model, pairs = of_shapes(5, wrong=0), edits(ShapesWorld(5, "test"), SCENES)
    model.changed = dict(zip(pairs.texts, pairs.after.images, strict=True))
    words = ("--data", "shapes", "--limit", SCENES, "--seed", 5, "--probe-scenes", 64, "--task", "edit")
    code, found, _, _ = run(model, *words)
    score = found["tasks"]["edit"]["score"]
    assert code == 0 and list(found["tasks"]) == ["edit"] and score["objects"] == score["true_tokens"]
    assert score["tokens"]["drawn"] == score["tokens"]["true"] > 0


def test_what_is_wrong_is_counted_wrong(run):
    model = of_shapes(5, wrong=3)
    tasks = ("--task", "caption", "--task", "vqa")
    _, found, _, _ = run(model, "--data", "shapes", "--limit", SCENES, "--seed", 5, *tasks)
    caption, vqa = found["tasks"]["caption"], found["tasks"]["vqa"]
    assert caption["score"]["objects"]["score"]["exact"] == pytest.approx(4 / 7)
    right = [row["answer"].strip() == row["true"] for row in vqa["results"]]
    assert vqa["score"]["overall"]["accuracy"] == pytest.approx(sum(right) / 28) and 16 <= sum(right) < 28
    assert [row["caption"] == row["true"] for row in caption["results"]] == [False] * 3 + [True] * 4


def test_results_and_seeds_do_not_depend_on_the_batch_size(run):
    words = ("--data", "shapes", "--limit", SCENES, "--seed", 5, "--probe-scenes", 64, "--guidance", 2)
    models = [of_shapes(5, wrong=2) for _ in range(2)]
    together = run(models[0], *words)[1]
    apart = run(models[1], *words, "--batch-size", 2)[1]
    assert together == apart
    captions = ShapesWorld(5, "test").scenes(SCENES).captions
    assert models[0].seeds == models[1].seeds == {text: seed_of(5, i) for i, text in enumerate(captions)}
    assert len(set(models[0].seeds.values())) == SCENES
    assert together["tasks"]["generate"]["settings"] == {"min_tokens": 1, "guidance": 2}


def test_the_tokens_drawn_come_with_the_report_and_stay_out_of_the_file():
    model, scenes = of_shapes(5, wrong=2), ShapesWorld(5, "test").scenes(SCENES)
    probe = tasks.decoded_probe(model, model.processor, ShapesWorld(5).scenes(64))
    report = tasks.generate_scenes(model, model.processor, scenes, probe, batch_size=2)
    seen = model.processor.image_processor(scenes.images[[model.drawn[text] for text in scenes.captions]])
    drawn = model.visual_tokenizer.encode(seen, deterministic=True).ragged().unbind()
    assert report.codes == [ids.tolist() for ids in drawn]
    assert [one["tokens"] for one in report.results] == [len(ids) for ids in report.codes]
    assert "codes" not in report.as_dict()


def forgetful() -> Knowing:
    """Has no caption for scene 4."""
    model = of_shapes(5, wrong=2)
    del model.said[model.images[4].tobytes()]
    return model


def judge_on_two(rank: int, folder: str) -> None:
    """One of two processes; only the first writes."""
    model = forgetful()
    evaluate.load_lavit = lambda folder, device: (model, model.processor)
    tasks.decoded_probe = HASTY
    words = ["--data", "shapes", "--limit", str(SCENES), "--seed", "5", "--probe-scenes", "64", "--guidance", "2"]
    words += ["--model", f"{folder}/x", "--device", "cpu", "--output", f"{folder}/{rank}.json"]
    code = evaluate.run(parse(words))
    assert code == (1 if rank == 0 else 0)  # so that torchrun does not end the first, which writes, for the second


def test_two_processes_report_what_one_does(run, tmp_path):
    on_two_processes(judge_on_two, tmp_path)
    words = ("--data", "shapes", "--limit", SCENES, "--seed", 5, "--probe-scenes", 64, "--guidance", 2)
    with on_threads(1):  # as there
        code, alone, _, err = run(forgetful(), *words)
    assert code == 1 and "skipped scene 4: never seen" in err
    assert not (tmp_path / "1.json").exists()
    assert json.loads((tmp_path / "0.json").read_text()) == {**alone, "processes": 2}


def test_a_model_without_image_tokens_is_judged_by_the_rest(run):
    model = of_shapes(5, wrong=0)
    model.config.image_objective = "regress"
    code, found, _, err = run(model, "--data", "shapes", "--limit", SCENES, "--seed", 5)
    assert code == 1 and list(found["tasks"]) == ["caption", "vqa"]
    assert found["left_out"][0][0] == "task generate" and "skipped task generate: the model regresses" in err


# --------------------------------------------------------------------------------------------------------------- folder


@pytest.fixture
def folder(tmp_path):
    """Five images with captions, two questions on each; and a model that knows them."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    said, answers = {}, {}
    content = {"images": [], "annotations": []}
    asked, answered = [], []
    for number in range(5):
        pixels = generator.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png"})
        content["annotations"] += [{"id": number, "image_id": number, "caption": f"a picture of thing {number}"}]
        said[pixels.tobytes()] = f"a picture of thing {number}"
        for place, people in enumerate((["yes"] * 9 + ["Yes"], ["2"] * 2 + ["two things"] * 8)):
            key = {"question_id": 10 * number + place, "image_id": number}
            asked.append({**key, "question": f"what {place}?"})
            kinds = {"question_type": "what", "answer_type": ("yes/no", "number")[place]}
            answered.append({**key, **kinds, "answers": [{"answer": text} for text in people]})
            answers[pixels.tobytes(), f"what {place}?"] = ("Yes.", "two")[place]
    (root / "captions.json").write_text(json.dumps(content))
    (root / "questions.json").write_text(json.dumps({"questions": asked}))
    (root / "answers.json").write_text(json.dumps({"annotations": answered}))
    return root, Knowing(said, answers, {})


def test_captions_and_answers_of_a_folder_are_judged_and_written_as_result_files(run, folder):
    root, model = folder
    code, found, out, _ = run(model, "--data", root, "--batch-size", 2)
    assert code == 0 and list(found["tasks"]) == ["caption", "vqa"]
    caption, vqa = found["tasks"]["caption"], found["tasks"]["vqa"]
    assert caption["results"] == [{"image_id": i, "caption": f"a picture of thing {i}"} for i in range(5)]
    score = caption["score"]
    assert set(score["scores"]) | set(score["skipped"]) == set(METRICS) and score["captions"] == 5
    told = [line for line in out.splitlines() if line.startswith("  skipped: ")]
    assert all(any(m in line and reason in line for line in told) for m, reason in score["skipped"].items())
    assert vqa["results"][:2] == [{"question_id": 0, "answer": "Yes."}, {"question_id": 1, "answer": "two"}]
    kinds = vqa["score"]["by_answer_type"]
    assert kinds["yes/no"]["accuracy"] == 1 and kinds["number"]["accuracy"] == pytest.approx(
        (2 / 3 * 8 + 1 / 3 * 2) / 10
    )
    assert "yes/no     1.000" in out and "min_new" not in model.asked[0]


def test_images_that_cannot_be_read_are_named_and_the_rest_goes_on(run, folder):
    root, model = folder
    (root / "images" / "1.png").write_bytes(b"no image")
    (root / "images" / "3.png").unlink()
    code, found, _, err = run(model, "--data", root)
    assert code == 1
    assert [row["image_id"] for row in found["tasks"]["caption"]["results"]] == [0, 2, 4]
    (skipped,) = found["tasks"]["caption"]["skipped"]
    assert skipped["name"].endswith("1.png") and skipped["reason"].startswith("not an image")
    assert [item["name"].split(" on ")[0] for item in found["tasks"]["vqa"]["skipped"]] == [
        "question 10",
        "question 11",
    ]
    assert found["tasks"]["vqa"]["score"]["overall"]["questions"] == 6
    left_out = dict(map(tuple, found["left_out"]))
    assert "no image file" in left_out["captions.json: image 3"] and len(left_out) == 3
    assert all(f"skipped {name}: {reason}" in err for name, reason in left_out.items())
    for path in (root / "images").iterdir():
        path.write_bytes(b"")
    code, found, _, err = run(model, "--data", root)
    assert code == 2 and found is None and "none of 4 could be used" in err and "the file is empty" in err


def test_answers_without_truth_are_written_and_not_judged(run, folder):
    root, model = folder
    (root / "answers.json").unlink()
    code, found, out, _ = run(model, "--data", root, "--task", "vqa", "--limit", 3, "--min-new", 1, "--beams", 3)
    assert code == 0 and found["tasks"]["vqa"]["score"] is None and len(found["tasks"]["vqa"]["results"]) == 3
    assert "not judged: the answers are not known" in out
    assert found["tasks"]["vqa"]["settings"] == {"min_new": 1, "num_beams": 3}


# ------------------------------------------------------------------------------------------------------- the real model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model that has learned nothing, as `lavit train language` would leave it."""
    folder = tmp_path_factory.mktemp("model")
    save_language_model(folder, tokenizer())
    return folder


def test_a_saved_model_is_judged_on_everything(saved, capsys):
    words = ["--model", str(saved), "--data", "shapes", "--limit", "2", "--probe-scenes", "8", "--device", "cpu"]
    assert main(["evaluate", *words, "--max-new", "4", "--beams", "2", "--output", "-"]) == 0
    found = json.loads(capsys.readouterr().out)["tasks"]
    assert [found[name]["evaluated"] for name in ("caption", "vqa", "generate")] == [2, 8, 2]
    assert all(0 <= found[name]["score"]["objects"]["score"]["recall"] <= 1 for name in ("caption", "generate"))
    assert found["caption"]["settings"] == {"min_new": 1, "max_new": 4, "num_beams": 2}


def test_wrong_use_is_one_line_before_any_work(saved, folder, tmp_path, capsys):
    root, _ = folder
    (tmp_path / "hollow").mkdir()
    tokenizer().save_pretrained(tmp_path / "stage1")
    model = ["--model", saved]
    cases = [
        (["--data", "shapes"], "--model is needed"),
        (model, "--data is needed"),
        (["--model", tmp_path / "nowhere", "--data", "shapes"], "there is no folder"),
        (["--model", tmp_path / "hollow", "--data", "shapes"], "it has no config.json"),
        (["--model", tmp_path / "stage1", "--data", "shapes"], "expected a LaVIT, as `lavit train language` leaves it"),
        ([*model, "--data", tmp_path / "nowhere"], "data: there is no folder"),
        ([*model, "--data", tmp_path / "hollow"], "there is no folder"),
        ([*model, "--data", root, "--task", "edit"], "--task edit: edits are judged in the shapes world"),
        ([*model, "--data", root, "--task", "generate"], "holds nothing that draws pixels"),
        ([*model, "--data", "shapes", "--task", "reconstruct"], "--task reconstruct: images of a folder"),
        ([*model, "--data", "shapes", "--captions", "c.json"], "--captions: is of a folder"),
        ([*model, "--data", root, "--captions", root / "none.json"], "none.json: no such file or directory"),
        ([*model, "--data", root, "--sheet", "sheet.pdf"], "--sheet: "),
        ([*model, "--data", root, "--split", "test"], "which has no splits"),
        ([*model, "--data", "shapes", "--split", "test"], "--split: the shapes world has none"),
        ([*model, "--data", "shapes", "--limit", 0], "--limit: expected at least 1, got 0"),
        ([*model, "--data", "shapes", "--output", tmp_path / "no" / "f"], "folder that does not exist"),
        ([*model, "--data", "shapes", "--device", "toaster"], "device: expected auto, cpu"),
    ]
    for words, message in cases:
        code = main(["evaluate", *map(str, words)])
        said = capsys.readouterr()
        assert code == 2 and said.out == "", words
        assert said.err.startswith("lavit: error: ") and message in said.err and said.err.count("\n") == 1, said.err
