"""``lavit train encoder``: its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lavit.training.encoder.recipe import EncoderTrainingConfig
from lavit.training.engine.command import Skipped, run_command

USAGE = """usage: lavit train encoder [--preset small|small-64|small-96|small-128] [--data FOLDER|shapes]
                           [--output FOLDER] [--config FILE] [--key value ...]
                           [--resume [--allow-changes] | --overwrite]

Trains an image encoder on a folder: by patches that it does not see and, where the folder has captions.json, by its
captions. Give the output folder to stage 1: lavit train tokenizer --encoder FOLDER. --validation FOLDER, or
--validation-share 0.05 of the data: held-out numbers before each checkpoint, and best/ in the output folder.
"""

FOLDERS = ("model",)


def main(argv: Sequence[str] | None = None) -> int:
    """``lavit train encoder``; returns the exit code. ValueError and OSError for wrong use or input."""
    target = "lavit.training.encoder.train:train_encoder"
    return run_command("encoder", argv, EncoderTrainingConfig, USAGE, target, FOLDERS, _ending)


def _ending(config: EncoderTrainingConfig, result: Any) -> tuple[Skipped, str, str]:
    folder = "" if config.data == "shapes" else f" --data {config.data}"
    next_one = f"lavit train tokenizer --preset {config.preset}{folder} --encoder {result.path}"
    ending = f"the encoder is in {result.path}; try: {next_one}"
    return result.skipped_images, "images or captions could not be used", ending
