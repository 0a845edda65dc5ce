"""What a command can say without a model it says before anything slow is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lavit.cli import COMMANDS, Command, Commands

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
        (["report", "nowhere", "--data", "here"], "MODEL: there is no folder nowhere"),
        (["codes", "here", "--model", "nowhere"], "--model: there is no folder nowhere"),
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
