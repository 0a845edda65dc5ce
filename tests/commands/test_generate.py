"""`lavit generate`: prompts of text and images, or tokens, become image files; what is wrong is named."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image
from tiny_models import CODES, pixel_pipeline, save_whole, tokenizer

from lavit.cli import main
from lavit.evaluation.tasks import seed_of
from lavit.kernels import Ragged
from lavit.language.model import LaVIT
from lavit.language.processing import LaVITProcessor
from lavit.pixels import LaVITPixelPipeline

FEW = ("--steps", 2)
TEXT = "a red square top left"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_whole(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


def run(capsys, *argv):
    code = main(["generate", *map(str, argv)])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_a_prompt_is_drawn_as_model_and_pipeline_draw_it(model, photo, tmp_path, capsys):
    for prompt in ([TEXT], [photo, "the same at night"], ["such as", photo, "or so"]):
        words = (
            *prompt,
            "--model",
            model,
            "--out",
            tmp_path / "x.png",
            "--seed",
            5,
            *FEW,
            "--json",
            tmp_path / "x.json",
        )
        code, out, err = run(capsys, *words, "--text-guidance", 3)
        assert code == 0 and err == "" and "x.png: 32 x 32 pixels of " in out and "seed 5" in out
        pieces = [piece if isinstance(piece, str) else Image.open(piece) for piece in prompt]
        lavit, processor = LaVIT.from_pretrained(model).eval(), LaVITProcessor.from_pretrained(model)
        pipeline = LaVITPixelPipeline.from_pretrained(model / "pixels")
        pipeline.set_progress_bar_config(disable=True)
        text = {"guidance": 3.0, "min_tokens": 1}
        wanted = pipeline.generate(lavit, processor, [pieces], seeds=[seed_of(5, 0)], text=text, num_inference_steps=2)
        assert abs(pixels(tmp_path / "x.png") - np.asarray(wanted.images[0])).max() <= 1  # the layout rounds otherwise
        record = json.loads((tmp_path / "x.json").read_text())
        assert record["images"][0]["ids"] == wanted.tokens.codes.values.tolist()
        assert record["images"][0]["seed"] == seed_of(5, 0) and record["skipped"] == []


def test_samples_are_numbered_and_do_not_depend_on_their_number_or_the_batch(model, tmp_path, capsys):
    words = (TEXT, "--model", model, "--seed", 3, *FEW)
    assert run(capsys, *words, "--out", tmp_path / "one.png")[0] == 0
    assert run(capsys, *words, "--out", tmp_path / "many.png", "--samples", 3, "--batch-size", 2)[0] == 0
    many = [pixels(tmp_path / f"many-{number}.png") for number in (1, 2, 3)]
    assert abs(many[0] - pixels(tmp_path / "one.png")).max() <= 1  # sums of another batch are rounded otherwise
    assert abs(many[0] - many[1]).max() > 1 and abs(many[1] - many[2]).max() > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many-1.png", "many-2.png", "many-3.png", "one.png"]


def test_without_a_seed_every_call_draws_anew_and_tells_how_to_repeat_it(model, tmp_path, capsys):
    words = (TEXT, "--model", model, *FEW, "--out", tmp_path / "x.png")
    seed = run(capsys, *words)[1].split()[-1]
    first = pixels(tmp_path / "x.png")
    assert run(capsys, *words)[1].split()[-1] != seed
    run(capsys, *words, "--seed", seed)
    assert (pixels(tmp_path / "x.png") == first).all()


def test_tokens_are_drawn_as_they_were_and_by_what_tokenize_writes(model, photo, tmp_path, capsys):
    words = (TEXT, "--model", model, "--seed", 3, *FEW, "--out", tmp_path / "x.png", "--json", tmp_path / "x.json")
    assert run(capsys, *words)[0] == 0
    again = ("--tokens", tmp_path / "x.json", "--pixels", model / "pixels", "--seed", 3, *FEW)
    assert run(capsys, *again, "--out", tmp_path / "y.png")[0] == 0
    assert (pixels(tmp_path / "x.png") == pixels(tmp_path / "y.png")).all()

    written = []
    for folder in (model, model / "pixels"):
        words = [str(photo), str(photo), "--model", str(folder), "--json", str(tmp_path / "t.json")]
        assert main(["tokenize", *words]) == 0
        written.append(json.loads((tmp_path / "t.json").read_text())["images"])
    assert written[0] == written[1]
    tokens = ("--tokens", tmp_path / "t.json", "--model", model, "--samples", 2, "--seed", 1, *FEW, "--json", "-")
    code, out, _ = run(capsys, *tokens, "--out", tmp_path / "t.jpg")
    records = json.loads(out)["images"]
    assert code == 0 and [record["file"][-7:] for record in records] == [f"t-{i}.jpg" for i in (1, 2, 3, 4)]
    ids = written[0][0]["ids"]
    assert all(record["ids"] == ids for record in records) and Image.open(tmp_path / "t-4.jpg").format == "JPEG"

    words = [str(photo), str(tmp_path / "none.png"), "--model", str(model), "--json", str(tmp_path / "t.jsonl")]
    assert main(["tokenize", *words]) == 1
    lines = ("--tokens", tmp_path / "t.jsonl", "--model", model, "--seed", 1, *FEW, "--json", "-")
    code, out, err = run(capsys, *lines, "--out", tmp_path / "l.jpg")
    assert code == 1 and [record["ids"] for record in json.loads(out)["images"]] == [ids] and "none.png" in err
    assert err.endswith("none.png): no such file\n")  # the reason that is told there

    head, *others = (tmp_path / "t.jsonl").read_text().splitlines()
    for text, count in (([others[0]], 1), ([head, others[0], head, others[0]], 2)):  # by a line, and of two files
        (tmp_path / "u.jsonl").write_text("\n".join(text))
        lines = ("--tokens", tmp_path / "u.jsonl", "--model", model, "--seed", 1, *FEW, "--json", "-")
        code, out, _ = run(capsys, *lines, "--out", tmp_path / "l.jpg")
        assert code == 0 and [record["ids"] for record in json.loads(out)["images"]] == [ids] * count
    (tmp_path / "u.jsonl").write_text(f"{head}\n{others[0][:-9]}")
    assert "u.jsonl is no JSON (line 2: " in run(capsys, *lines, "--out", tmp_path / "l.jpg")[2]


def test_steps_are_of_the_scheduler_that_is_named(model, tmp_path, capsys):
    (tmp_path / "t.json").write_text(json.dumps({"images": [{"ids": [1, 2, 3]}]}))
    words = ("--tokens", tmp_path / "t.json", "--model", model, "--seed", 3, "--out", tmp_path / "x.png", *FEW)
    assert run(capsys, *words, "--scheduler", "Euler")[0] == 0
    pipeline = LaVITPixelPipeline.from_pretrained(model / "pixels")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    codes = Ragged.from_list([torch.tensor([1, 2, 3])])
    wanted = pipeline(codes, seeds=[seed_of(3, 0)], num_inference_steps=2).images[0]
    assert abs(pixels(tmp_path / "x.png") - np.asarray(wanted)).max() <= 1
    code, _, err = run(capsys, *words, "--scheduler", "Newton")
    assert code == 2 and "--scheduler: expected one of DDIM, DDPM, " in err and err.endswith(", got Newton\n")


def test_tokens_that_cannot_be_used_are_named_and_the_rest_goes_on(model, tmp_path, capsys):
    entries = [{"file": "a", "ids": [0, CODES]}, {"ids": "no"}, {"file": "c", "ids": [1, 2]}, {"ids": [0] * 17}, 7]
    (tmp_path / "t.json").write_text(json.dumps({"images": entries}))
    words = ("--tokens", tmp_path / "t.json", "--model", model, "--out", tmp_path / "x.png", *FEW)
    code, out, err = run(capsys, *words)
    assert code == 1 and "x.png: 32 x 32 pixels of 2 tokens" in out
    for reason in (
        "image 0 (a): expected codes 0 to 11, got 12",
        "image 1 (no name): expected a list of integers",
        "image 3 (no name): 17 codes are more than the 16 positions",
        "image 4 (no name): expected a list of integers",
    ):
        assert f"lavit: skipped {reason}" in err
    (tmp_path / "t.json").write_text(json.dumps({"images": entries[:2]}))
    code, _, err = run(capsys, *words[:4], "--out", tmp_path / "none.png")
    assert code == 2 and "none of the images" in err and not (tmp_path / "none.png").exists()


def test_the_pixels_of_another_tokenizer_are_refused(model, tmp_path, capsys):
    pixel_pipeline(tokenizer(seed=9)).save_pretrained(tmp_path / "other")
    code, _, err = run(capsys, TEXT, "--model", model, "--pixels", tmp_path / "other", "--out", tmp_path / "x.png")
    assert code == 2 and "they come from two tokenizers" in err and str(tmp_path / "other") in err


def test_wrong_use_is_one_line_and_writes_nothing(model, photo, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("pixels"))
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:200])
    (tmp_path / "list.json").write_text("[1]")
    out, whole = ("--out", tmp_path / "x.png"), ("--model", model)
    cases = [
        ([*out, *whole], "PROMPT: expected either a prompt or --tokens F, got neither"),
        ([TEXT, *out, *whole, "--tokens", "t.json"], "got both"),
        ([TEXT, *whole], "--out F is needed"),
        ([TEXT, *out], "--model DIR is needed"),
        ([TEXT, *out, "--pixels", model / "pixels"], "--model DIR is needed"),
        ([TEXT, *out, "--model", tmp_path / "nowhere"], "--model: there is no folder"),
        ([TEXT, *out, "--model", bare], "bare holds nothing that draws pixels"),
        ([TEXT, *out, "--model", model / "pixels"], "holds no model (it has no config.json)"),
        ([TEXT, "none.png", *out, *whole], "PROMPT: there is no image file none.png"),
        ([TEXT, tmp_path / "cut.png", *out, *whole], "cut.png: "),
        ([TEXT, " ", *out, *whole], "got an empty one"),
        (["long " * 300, *out, *whole], "the model's context has 256"),
        ([photo, TEXT, *whole, "--out", photo], "would be overwritten"),
        ([TEXT, *whole, "--out", tmp_path / "x.gif"], "--out: expected a name that ends in .png"),
        ([TEXT, *whole, "--out", tmp_path / "no" / "x.png"], "folder that does not exist"),
        ([TEXT, *out, *whole, "--json", tmp_path], "--json: expected a file to write"),
        ([*out, *whole, "--tokens", tmp_path / "none.json"], "none.json"),
        ([*out, *whole, "--tokens", photo], "is no JSON"),
        ([*out, *whole, "--tokens", tmp_path / "list.json"], 'expected a list of "images"'),
        ([TEXT, *out, *whole, "--samples", 0], "--samples: expected at least 1, got 0"),
        ([TEXT, *out, *whole, "--text-guidance", -1], "--text-guidance: expected at least 0"),
        ([TEXT, *out, *whole, "--top-k", 0], "--top-k: expected at least 1"),
        ([TEXT, *out, *whole, "--size", "31x32"], "width: expected a positive multiple of 2"),
    ]
    before = photo.read_bytes()
    for argv, message in cases:
        code, said, err = run(capsys, *argv)
        assert code == 2 and said == "", argv
        assert err.startswith("lavit: error: ") and message in err and err.count("\n") == 1, (argv, err)
    assert photo.read_bytes() == before and not (tmp_path / "x.png").exists()
