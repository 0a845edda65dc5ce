"""What a command can say without a model it says before anything slow is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import lavit.training
from lavit.cli import COMMANDS, Command, Commands, main
from lavit.tokenizer.preset_sizes import SIZES

SLOW = ("torch", "transformers", "diffusers", "matplotlib", "skimage", "scipy", "torchvision", "accelerate")

PROGRAM = f"""
import json, sys
from lavit.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print(json.dumps([code, [name for name in {SLOW} if name in sys.modules]]))
"""


def names(commands: Commands, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in commands.items():
        if isinstance(command, Command):
            yield (*before, name)
        else:
            yield from names(command, (*before, name))


def run(*words: str) -> tuple[int, list[str], str]:
    """Exit code, the slow modules that were imported, and what was said."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, _, last = done.stdout.rstrip("\n").rpartition("\n")
    code, slow = json.loads(last)
    return code, slow, said + done.stderr


@pytest.mark.parametrize("command", list(names(COMMANDS)), ids=" ".join)
def test_help_of_every_command_imports_nothing_slow(command):
    code, slow, said = run(*command, "--help")
    assert (code, slow) == (0, [])
    assert f"usage: lavit {' '.join(command)}" in said


PRESETS = [(stage, path.stem) for stage in ("tokenizer", "language", "pixels") for path in sorted(
    (Path(lavit.training.__path__[0]) / stage / "recipes").glob("*.yaml"))]  # fmt: skip


@pytest.mark.parametrize(("stage", "preset"), PRESETS)
def test_help_shows_the_values_of_the_preset_on_the_line(stage, preset, capsys):
    recipe = import_module(f"lavit.training.{stage}.recipe")
    (cls,) = (value for name, value in vars(recipe).items() if name.endswith("TrainingConfig"))
    wanted = cls.recipe(preset)
    for words in (["--preset", preset, "--help"], ["-h", f"--preset={preset}"]):
        assert main(["train", stage, *words]) == 0
        said = capsys.readouterr().out
        assert f"settings of the preset {preset}" in said
        for name in ("schedule.lr", "loop.steps", "loop.batch_size", "loop.checkpoint_every", "loop.precision"):
            section, _, leaf = name.partition(".")
            value = getattr(getattr(wanted, section), leaf)
            (line,) = (line for line in said.splitlines() if line.startswith(f"  --{name} "))
            assert line.endswith(f" [{value}]")


def test_help_shows_what_the_other_words_change(tmp_path, capsys):
    assert main(["train", "tokenizer", "--help"]) == 0
    said = capsys.readouterr().out
    assert "[0.004]" in said and "--cache.enabled" in said and "images: 32 x 32 pixels (stretch), 64 patches" in said
    (tmp_path / "my.yaml").write_text("extends: small\nschedule: {lr: 0.125}\ntokenizer: {image_size: 64}\n")
    words = ["--config", str(tmp_path / "my.yaml"), "--steps", "77", "--fit", "crop", "--resume"]
    assert main(["train", "tokenizer", *words, "--help"]) == 0
    said = capsys.readouterr().out
    assert "[0.125]" in said and "[77]" in said and "images: 64 x 64 pixels (crop), 256 patches of 4 x 4" in said
    # A word that is wrong does not keep the help away.
    assert main(["train", "pixels", "--help", "--stepz", "5", "--preset", "highres"]) == 0
    assert "settings of the preset highres" in capsys.readouterr().out
    assert main(["train", "pixels", "--help", "--preset", "high"]) == 2
    assert "preset: expected one of" in capsys.readouterr().err


def test_the_sizes_that_help_tells_are_the_presets():
    from lavit.tokenizer.configuration import PRESETS as CONFIGURATIONS
    from lavit.tokenizer.configuration import LaVITTokenizerConfig

    assert set(CONFIGURATIONS) <= set(SIZES)
    for name in CONFIGURATIONS:
        config = LaVITTokenizerConfig.preset(name)
        assert SIZES[name] == (config.image_size, config.patch_size)


@pytest.mark.parametrize(
    "words, told",
    [
        (["tokenize", "a.png", "--model", "nowhere"], "there is no folder nowhere"),
        (["tokenize", "a.png", "--batch-size", "many"], "argument --batch-size"),
        (["tokenize", "a.png"], "--model DIR is needed"),
        (["train", "language"], "tokenizer: expected the folder that stage 1 left"),
        (["train", "language", "--preset", "lavit-g", "--tokenizer", "."], "starts from a LLaMA: --language-model"),
        (["train", "pixels"], "tokenizer: expected the folder that stage 1 left"),
        (["train", "pixels", "--preset", "highres", "--tokenizer", "."], "starts from a folder with unet/config.json"),
        (["reconstruct", "a.png", "--model", "nowhere"], "there is no folder nowhere"),
        (["generate", "a bus", "--model", "nowhere", "--out", "a.png"], "there is no folder nowhere"),
        (["generate", "a.png", "--model", "nowhere", "--out", "b.png"], "there is no image file a.png"),
        (["evaluate", "--model", "nowhere", "--data", "shapes"], "there is no folder nowhere"),
        (["evaluate", "--data", "shapes"], "--model is needed"),
        (["convert", "nowhere", "out"], "there is no folder nowhere"),
        (["quickstart", "--seed", "half"], "argument --seed"),
        (["train", "tokenizer", "--model", "nowhere"], "there is no folder nowhere"),
        (["train", "language", "--tokenizer", "nowhere"], "there is no folder nowhere"),
        (["train", "pixels", "--stepz", "3"], "stepz: no such setting"),
        (["train", "pixels", "--resume", "--output", "nowhere"], "--resume: nowhere/training.yaml is not there"),
    ],
)
def test_wrong_words_and_missing_folders_are_told_before_anything_slow_is_imported(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, slow, said = run(*words)
    assert code == 2 and told in said and said.count("lavit: error") <= 1
    # The kind of this error belongs to checkpoints.
    assert slow == [] or "--resume" in words
