"""``lavit train tokenizer``: its words."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Any

from lavit.shapes.world import SHAPES_WORLD
from lavit.tokenizer.encoder_names import is_external
from lavit.training.engine import config as configuration
from lavit.training.engine.command import Skipped, run_command
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig

USAGE = """usage: lavit train tokenizer [--preset small|small-64|small-96|small-128|lavit-g] [--data FOLDER|shapes]
                             [--encoder FOLDER|timm:NAME|transformers:NAME] [--fit stretch|crop|pad] [--output FOLDER]
                             [--config FILE] [--key value ...] [--resume [--allow-changes] | --overwrite]
       lavit train tokenizer --data FOLDER --suggest

Stage 1: trains the dynamic visual tokenizer. --suggest trains nothing: it looks at some of the images and says which
preset, number of codes, keep rate and steps to begin with, and why.

--validation FOLDER, or --validation-share 0.05 of the data, chosen by a hash of the files' names, alike in all stages:
before each checkpoint loss, cosine, share of patches kept and use of the codes on held-out images; best/ in the output
folder holds the best model at the end.
"""

FOLDERS = ("model",)


def main(argv: Sequence[str] | None = None) -> int:
    """``lavit train tokenizer``; returns the exit code. ValueError and OSError for wrong use or input."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--suggest" in words and not {"--help", "-h"} & set(words):
        return _suggest([word for word in words if word != "--suggest"])
    target = "lavit.training.tokenizer.train:train_tokenizer"
    return run_command("tokenizer", words, TokenizerTrainingConfig, USAGE, target, FOLDERS, _ending)


def _ending(config: TokenizerTrainingConfig, result: Any) -> tuple[Skipped, str, str]:
    ending = f"the tokenizer is in {result.path}; try: lavit tokenize IMAGE --model {result.path}"
    return result.skipped_images, "images could not be read and were skipped", ending


def _suggest(argv: Sequence[str]) -> int:
    """Prints the settings to begin with for the folder that the words name, their reasons and the command."""
    given, _ = configuration.words(TokenizerTrainingConfig, argv)
    data = given.pop("data", SHAPES_WORLD)
    if data == SHAPES_WORLD:
        raise configuration.ConfigError("--suggest: expected --data FOLDER beside it, of images to look at")
    if "config" in given:
        raise configuration.ConfigError("--suggest: expected no --config beside it, whose settings are decided already")
    if is_external(given.get("encoder")):
        raise configuration.ConfigError("--suggest: expected no encoder of another library, whose patches are its own")

    from lavit.training.tokenizer.suggest import suggest

    found = suggest(data, given)
    print(*found.reasons, sep="\n")
    print(f"to begin with:\n  {shlex.join(['lavit', 'train', 'tokenizer', *found.words])}")
    return 0
