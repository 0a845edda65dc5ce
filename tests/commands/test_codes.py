"""`lavit codes`: a page, a picture and figures of the codes of a folder."""

from __future__ import annotations

import json

import pytest
from described_folder import write_pictures
from PIL import Image
from plausible import Outline
from tiny_models import CODES, SIDE, tokenizer

from lavit.cli import main
from lavit.tokenizer import LaVITImageProcessor


@pytest.fixture
def place(tmp_path, monkeypatch):
    """With `model` and `pictures`, a folder in which to work."""
    monkeypatch.chdir(tmp_path)
    tokenizer().save_pretrained(tmp_path / "model")
    LaVITImageProcessor(SIDE).save_pretrained(tmp_path / "model")
    write_pictures(tmp_path / "pictures", 6)
    return tmp_path


def codes(*words):
    return main(["codes", *words, "--device", "cpu"])


def test_page_picture_and_figures_agree(place, capsys):
    words = ("--codes", "3", "--patches", "4", "--output", "a.html", "--picture", "a.png", "--json", "a.json")
    assert codes("pictures", "--model", "model", *words) == 0
    figures = json.loads((place / "a.json").read_text())
    page = Outline((place / "a.html").read_text(encoding="utf-8"))
    assert page.open == [] and len(page.all("img")) == len(figures["codes"]) <= 3
    assert figures["codes_used"] + figures["codes_never_used"] == figures["codes_in_codebook"] == CODES
    assert figures["images"] == 6 and figures["tokens"] >= sum(code["uses"] for code in figures["codes"])
    assert Image.open(place / "a.png").width > 500
    assert f"{figures['codes_used']} of {CODES} codes used" in capsys.readouterr().out


def test_without_a_word_about_it_a_page_is_written_and_to_the_standard_output_figures_alone(place, capsys):
    assert codes("pictures", "--model", "model", "--limit", "2") == 0
    assert (place / "codes.html").is_file()
    capsys.readouterr()
    assert codes("pictures", "--model", "model", "--limit", "2", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2


def test_a_picture_that_cannot_be_read_is_named(place, capsys):
    (place / "pictures" / "bad.png").write_bytes(b"no picture")
    assert codes("pictures", "--model", "model") == 1
    assert "bad.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, told",
    [
        (["pictures"], "--model DIR is needed"),
        (["nowhere", "--model", "model"], "there is no folder nowhere"),
        (["pictures", "--model", "nowhere"], "--model: there is no folder nowhere"),
        (["pictures", "--model", "model", "--codes", "0"], "--codes: expected at least 1, got 0"),
        (["pictures", "--model", "model", "--picture", "a.txt"], "--picture: expected a name that ends in"),
        (["pictures", "--model", "model", "--picture", "pictures/1.png"], "would be overwritten"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(place, capsys, words, told):
    assert codes(*words) == 2
    assert told in capsys.readouterr().err and not (place / "codes.html").exists()
