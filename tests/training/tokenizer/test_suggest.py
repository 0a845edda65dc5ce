"""What --suggest guesses of a folder: the shapes world's own settings, richer ones for richer pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lavit.data.images import ImageError
from lavit.shapes.world import ShapesWorld
from lavit.training.engine.config import ConfigError
from lavit.training.tokenizer.command import main
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig
from lavit.training.tokenizer.suggest import suggest


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    for number, image in enumerate(ShapesWorld(0, "train").scenes(512).images):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def test_shapes_are_given_about_their_own_recipe(shapes: Path):
    recipe = TokenizerTrainingConfig.recipe("small")
    found = suggest(shapes).settings
    assert found["preset"] == "small"
    assert found["tokenizer.num_codes"] == 256  # the preset's
    assert found["tokenizer.keep_rate"] == pytest.approx(recipe.tokenizer["keep_rate"], abs=0.05)
    assert found["loop.steps"] == pytest.approx(recipe.loop.steps, rel=0.15)


def test_pictures_without_order_need_more_codes_and_more_tokens(shapes: Path, tmp_path: Path):
    generator = np.random.default_rng(0)
    for number in range(256):
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    rich, plain = suggest(tmp_path).settings, suggest(shapes).settings
    # Of noise every patch differs from its neighbours: all but the quietest tenth hold nine tenths.
    assert rich["tokenizer.keep_rate"] > 2 * plain["tokenizer.keep_rate"]


def test_pictures_of_one_colour_keep_next_to_nothing(tmp_path: Path):
    for number in range(8):
        Image.new("RGB", (40, 40), (30 * number, 0, 0)).save(tmp_path / f"{number}.png")
    found = suggest(tmp_path).settings
    assert (found["tokenizer.num_codes"], found["tokenizer.keep_rate"]) == (64, 0.05)


def test_what_is_given_stays_and_is_not_guessed(shapes: Path):
    found = suggest(shapes, {"preset": "small", "tokenizer.num_codes": "100", "loop.steps": "7"})
    assert found.settings == {
        "tokenizer.keep_rate": found.settings["tokenizer.keep_rate"],
        "preset": "small",
        "tokenizer.num_codes": "100",
        "loop.steps": "7",
    }
    assert len(found.reasons) == 2  # the sample and the keep rate


def test_steps_follow_the_uses_of_a_code(shapes: Path):
    few, many = (suggest(shapes, {"loop.batch_size": str(size)}).settings["loop.steps"] for size in (32, 8))
    assert many == pytest.approx(4 * few, rel=0.1)


def test_the_guess_is_the_same_every_time(shapes: Path):
    assert suggest(shapes) == suggest(shapes)


def test_the_command_prints_words_that_a_run_accepts(shapes: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--data", str(shapes), "--suggest", "--lr", "0.001"]) == 0
    *reasons, command = capsys.readouterr().out.strip().splitlines()
    words = command.split()
    assert words[:3] == ["lavit", "train", "tokenizer"] and words[-2:] == ["--schedule.lr", "0.001"]
    given = dict(zip((word.removeprefix("--") for word in words[3::2]), words[4::2], strict=True))
    config = TokenizerTrainingConfig.recipe(given.pop("preset"), given)
    assert config.data == str(shapes) and config.schedule.lr == 0.001
    assert any("codes" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "expected --data FOLDER"),
        (["--data", "x", "--config", "my.yaml"], "expected no --config"),
        (["--data", "x", "--encoder", "timm:resnet18"], "expected no encoder of another library"),
    ],
)
def test_what_a_guess_cannot_take_account_of_is_refused(words, told):
    with pytest.raises(ConfigError, match=f"--suggest: {told}"):
        main(["--suggest", *words])


def test_files_that_are_no_pictures_are_named(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="expected at least two images that can be read, got 0"):
        suggest(tmp_path)
