"""``lavit train language``: its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lavit.training.engine.command import Skipped, run_command
from lavit.training.language.recipe import LanguageTrainingConfig

USAGE = """usage: lavit train language --tokenizer FOLDER [--preset small|lavit-g] [--language-model FOLDER]
                            [--data shapes|FOLDER] [--text FILE] [--output FOLDER] [--config FILE]
                            [--key value ...] [--resume [--allow-changes] | --overwrite]

Stage 2: trains the language model, and the merger and projector through which it reads images, on captions, questions,
requests for images, edits of images, images alone and text, packed without padding.

--data FOLDER holds images/ and captions.json (COCO captions or Karpathy's split); optional are questions.json and
answers.json (VQAv2's questions and annotations), edits.jsonl ({"image": FILE, "text": ..., "result": FILE} a line: an
image, what is asked for with it, and the image that shows it) and text.jsonl ({"text": ...} a line) or text.txt.
Of what is not there, the share of the mixture must be 0: --mixture.question 0 --mixture.edit 0. Images that cannot be
read are named and left out; so are, without a word, edits between images that are not of the split. The features of all
images are kept in the output folder, memory-mapped: N x C x 4 bytes an image, 1.4 MB for EVA-CLIP's 256 patches of 1408
channels, 140 GB for 100 000 images; without an output folder they are in memory, as are the tokens in every process.
"""

FOLDERS = ("model", "tokenizer", "language_model")


def main(argv: Sequence[str] | None = None) -> int:
    """``lavit train language``; returns the exit code. ValueError and OSError for wrong use or input."""
    target = "lavit.training.language.train:train_language"
    return run_command("language", argv, LanguageTrainingConfig, USAGE, target, FOLDERS, _ending)


def _ending(config: LanguageTrainingConfig, result: Any) -> tuple[Skipped, str, str]:
    what = f"items of {config.data} could not be used and were left out"
    return result.skipped_items, what, f"the model is in {result.path}"
