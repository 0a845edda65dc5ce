"""`lavit convert`: a released folder becomes one that every command takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from released_folder import CONFIG, TEXT_SIZE, TEXTS, write_release

from lavit.cli import main


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("whole") / "release")


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sizes") / "config.json"
    CONFIG.to_json_file(path)
    return path


@pytest.fixture(scope="module")
def own(release: Path, sizes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "own"
    assert main(["convert", str(release), str(out), "--config", str(sizes), "--text-size", str(TEXT_SIZE)]) == 0
    return out


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in argv])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def test_what_was_written_is_told(
    release: Path, sizes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "own"
    words = ("convert", release, out, "--config", sizes, "--text-size", TEXT_SIZE, "--dtype", "bfloat16")
    code, said, _ = run(capsys, *words)
    assert code == 0 and f"{out}: language model, tokenizer and processor" in said
    assert f"{out / 'pixels'}: pixels, highres" in said and f"{out / 'pixels_lowres'}: pixels, lowres" in said
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    code, _, error = run(capsys, *words)
    assert code == 2 and "expected a new folder" in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("pixels", [(), ("pixels_lowres",)])
def test_every_command_takes_the_converted_folder(
    own: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pixels: tuple[str, ...]
) -> None:
    chosen = [word for name in pixels for word in ("--pixels", own / name)]
    code, _, error = run(capsys, "tokenize", photo, "--model", own, "--json", tmp_path / "tokens.json")
    assert code == 0, error
    ids = json.loads((tmp_path / "tokens.json").read_text())["images"][0]["ids"]
    assert all(0 <= i < CONFIG.num_codes for i in ids)
    few = ("--steps", 2, *chosen)
    code, _, error = run(capsys, "reconstruct", photo, "--model", own, "--out", tmp_path / "again.png", *few)
    assert code == 0 and Image.open(tmp_path / "again.png").size == (16, 16), error
    words = ("generate", TEXTS[0], photo, "--model", own, "--out", tmp_path / "drawn.png", "--seed", 3, *few)
    code, out, error = run(capsys, *words)
    assert code == 0 and "drawn.png: 16 x 16 pixels of" in out, error


def test_the_converted_model_is_evaluated(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--task", "caption", "--limit", 2, "--max-new", 4)
    code, out, error = run(capsys, "evaluate", "--model", own, "--data", "shapes", *words)
    assert code == 0 and "caption: 2 items" in out, error


@pytest.mark.parametrize(
    ("command", "pixels"),
    [("tokenize", False), ("generate", False), ("generate", True), ("reconstruct", False), ("evaluate", False)],
)
def test_a_released_folder_itself_is_told_what_to_do(
    release: Path,
    own: Path,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    pixels: bool,
) -> None:
    words = ("--data", photo.parent, "--task", "reconstruct") if command == "evaluate" else (photo,)
    words += ("--out", tmp_path / "drawn.png") if command in ("generate", "reconstruct") else ()
    words += ("--pixels", own / "pixels") if pixels else ()
    code, _, error = run(capsys, command, *words, "--model", release)
    assert code == 2 and "is a released folder; `lavit convert" in error


def test_wrong_use_is_told_in_a_line(
    release: Path, sizes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "own"
    (tmp_path / "list.json").write_text("[1]")
    for words, told in (
        ((tmp_path, out), "no released LaVIT"),
        ((release, out), "vocab_size: expected at least 48386"),  # the sizes of the 7B
        ((release, out, "--config", tmp_path / "list.json"), "--config: .* holds no configuration"),
        ((release, out, "--config", sizes), "vocab_size: expected at least 32018"),
        ((release, out, "--config", sizes, "--text-size", 0), "--text-size: expected at least 1"),
        ((release, tmp_path / "lost" / "own", "--config", sizes), "does not exist"),
    ):
        code, _, error = run(capsys, "convert", *words)
        assert code == 2 and re.search(told, error) and len(error.strip().splitlines()) == 1, error
    assert not out.exists() and {path.name for path in tmp_path.iterdir()} == {"list.json"}
