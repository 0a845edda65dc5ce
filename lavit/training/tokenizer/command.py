"""``lavit train tokenizer``: its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lavit.training.engine.command import Skipped, run_command
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig

USAGE = """usage: lavit train tokenizer [--preset small|lavit-g] [--data FOLDER|shapes] [--output FOLDER]
                             [--config FILE] [--key value ...] [--resume [--allow-changes] | --overwrite]

Stage 1: trains the dynamic visual tokenizer.

--validation FOLDER, or --validation-share 0.05 of the data, chosen by a hash of the files' names, alike in all stages:
before each checkpoint loss, cosine, share of patches kept and use of the codes on held-out images; best/ in the output
folder holds the best model at the end.
"""

FOLDERS = ("model",)


def main(argv: Sequence[str] | None = None) -> int:
    """``lavit train tokenizer``; returns the exit code. ValueError and OSError for wrong use or input."""
    target = "lavit.training.tokenizer.train:train_tokenizer"
    return run_command("tokenizer", argv, TokenizerTrainingConfig, USAGE, target, FOLDERS, _ending)


def _ending(config: TokenizerTrainingConfig, result: Any) -> tuple[Skipped, str, str]:
    ending = f"the tokenizer is in {result.path}; try: lavit tokenize IMAGE --model {result.path}"
    return result.skipped_images, "images could not be read and were skipped", ending
