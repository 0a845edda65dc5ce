"""`lavit report`: a page of every kind of model and folder, and mistakes told before the work."""

from __future__ import annotations

import json
import re

import pytest
from described_folder import write_described, write_pictures
from plausible import Outline
from tiny_models import SIDE, save_whole, tokenizer

from lavit.cli import main
from lavit.evaluation import captioning
from lavit.tokenizer import LaVITImageProcessor


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A language model with pixels, and a tokenizer in the folder of its run."""
    folder = tmp_path_factory.mktemp("models")
    save_whole(folder / "whole")
    tokenizer().save_pretrained(folder / "run")
    LaVITImageProcessor(SIDE).save_pretrained(folder / "run")
    rows = [{"step": step, "loss": 1 / step, "val_loss": 2 / step} for step in (1, 2)]
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run" / "training.yaml").write_text("encoder_steps: 1\n")
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_described(tmp_path_factory.mktemp("data") / "scenes", 4)


@pytest.fixture
def report(monkeypatch, capsys, tmp_path):
    """Runs the command; its exit code, the page, and the two outputs."""
    monkeypatch.setattr(captioning.shutil, "which", lambda name: None)  # no Java, whose start takes long
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main(["report", *map(str, words), "--device", "cpu"])
        said = capsys.readouterr()
        page = tmp_path / "report.html"
        return code, page.read_text(encoding="utf-8") if page.exists() else None, said.out, said.err

    return run


def sections(page):
    """The text of each section by its id."""
    return {name: part for name, part in re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.S)}


def test_a_whole_model_and_a_described_folder_give_every_section(report, models, scenes):
    words = ("--steps", 1, "--beams", 1, "--max-new", 4, "--min-new", 1, "--drawn", 2)
    code, page, out, err = report(models / "whole", "--data", scenes, "--runs", models / "run", *words)
    assert code == 0 and "skipped" not in err and Outline(page).open == []
    found = sections(page)
    assert 'class="empty"' not in "".join(found[name] for name in "captions answers rebuilt drawn changed".split())
    assert 'class="held"' in found["learning"] and "U-Net" in found["reproduce"]
    assert "4 pictures" in out and "drawn for captions" in out and "report: report.html" in out


def test_a_run_of_a_tokenizer_shows_its_own_curves_once_and_says_what_it_cannot(report, models, scenes):
    code, page, out, _ = report(models / "run", "--data", scenes, "--runs", models / "run")
    found = sections(page)
    assert code == 0 and found["learning"].count('class="group"') == 1
    assert all('class="empty"' in found[name] for name in "captions answers rebuilt drawn changed".split())
    assert "no captions, answers, drawn pictures, changed pictures: this model is a tokenizer" in out


def test_a_pixel_pipeline_rebuilds_bare_pictures_and_a_bad_one_is_named(report, models, tmp_path):
    write_pictures(tmp_path / "bare", 2)
    (tmp_path / "bare" / "bad.png").write_bytes(b"no picture")
    pipeline = models / "whole" / "pixels"
    code, page, _, err = report(pipeline, "--data", tmp_path / "bare", "--steps", 1)
    assert code == 1 and "skipped" in err and "bad.png" in err and "bad.png" in sections(page)["reproduce"]
    assert 'class="empty"' not in sections(page)["rebuilt"] and 'class="empty"' in sections(page)["learning"]
    same, other, *_ = report(models / "run", "--pixels", pipeline, "--data", tmp_path / "bare", "--steps", 1)
    assert same == 1 and "dB" in sections(other)["rebuilt"]


@pytest.mark.parametrize(
    "words, told",
    [
        (["{models}/run"], "--data FOLDER is needed"),
        (["nowhere", "--data", "{scenes}"], "MODEL: there is no folder nowhere"),
        (["{models}/run", "--data", "nowhere"], "data: there is no folder nowhere"),
        (["{models}/run", "--data", "{scenes}", "--runs", "nowhere"], "--runs: there is no folder nowhere"),
        (["{models}/run", "--data", "{scenes}", "--runs", "{scenes}"], "holds no training run"),
        (["{models}/run", "--data", "{scenes}", "--limit", "0"], "--limit: expected at least 1, got 0"),
        (["{models}/run", "--data", "{scenes}", "--output", "-"], "--output: expected a file to write, got -"),
        (["{models}/run", "--data", "{scenes}", "--output", "{scenes}/captions.json"], "would be overwritten"),
        (["{models}/run", "--data", "{scenes}", "--output", "{models}/run/training.yaml"], "a file of the model"),
        (["{models}/run", "--data", "{scenes}", "--pixels", "{models}/run"], "holds no pixel pipeline"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(report, models, scenes, words, told):
    code, page, _, err = report(*(word.format(models=models, scenes=scenes) for word in words))
    assert code == 2 and page is None and told in err and err.count("lavit: error") == 1
