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
With the preset small the shares of the mixture follow what is there, and what is not has none; a share given by hand
(--mixture.caption 2) makes all count as they stand, and then that of what is not there must be 0. How often each sample
will be seen is told at the start. Images that cannot be read are named and left out; so are, without a word, edits
between images that are not of the split. The features of all images are looked for in the tokenizer's folder, where
stage 1 keeps its own, and what is missing is kept there or in the output folder, memory-mapped: N x C x 4 bytes an
image, 1.4 MB for EVA-CLIP's 256 patches of 1408 channels, 140 GB for 100 000 images; without an output folder they are
in memory, as are the tokens in every process.
--validation FOLDER, or --validation-share 0.05 of the data: before each checkpoint the loss of held-out samples, and
how many of at most 64 images are captioned word for word; best/ in the output folder holds the best model at the end.
"""

FOLDERS = ("model", "tokenizer", "language_model")


def main(argv: Sequence[str] | None = None) -> int:
    """``lavit train language``; returns the exit code. ValueError and OSError for wrong use or input."""
    target = "lavit.training.language.train:train_language"
    return run_command("language", argv, LanguageTrainingConfig, USAGE, target, FOLDERS, _ending)


def _ending(config: LanguageTrainingConfig, result: Any) -> tuple[Skipped, str, str]:
    what = f"items of {config.data} could not be used and were left out"
    return result.skipped_items, what, f"the model is in {result.path}"
