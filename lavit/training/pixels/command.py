"""``lavit train pixels``: its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lavit.training.engine.command import Skipped, run_command
from lavit.training.pixels.recipe import PixelsTrainingConfig

USAGE = """usage: lavit train pixels --tokenizer FOLDER [--preset small|lowres|highres] [--base FOLDER]
                          [--data shapes|FOLDER] [--output FOLDER] [--config FILE]
                          [--key value ...] [--resume [--allow-changes] | --overwrite]

Stage 3: trains a U-Net to draw images from what the frozen tokenizer's tokens decode to.

small draws pixels and needs no base. --base FOLDER holds unet/, vae/ and scheduler/ as diffusers saves them, of
Stable Diffusion 1.5 for lowres and of SDXL for highres; the VAE stays as it is. highres learns 512 pixels first, and
then more: lavit train pixels --preset highres --model runs/pixels --size 1024 --output runs/pixels-1024
--data FOLDER is a folder of images. Each is resized and cut around the middle, with --buckets to the nearest of seven
aspect ratios. --cache.enabled computes the tokenizer's features of all of them first and keeps them, memory-mapped:
N x C x 4 bytes an image, 1.4 MB for EVA-CLIP's 256 patches of 1408 channels. Where stages 1 and 2 have kept features of
the encoder in the tokenizer's folder, and no image is cut, those are taken instead.
--validation FOLDER, or --validation-share 0.05 of the data: before each checkpoint the loss on held-out images, with
the same noise every time; best/ in the output folder holds the best model at the end.
"""

FOLDERS = ("model", "tokenizer", "base")


def main(argv: Sequence[str] | None = None) -> int:
    """``lavit train pixels``; returns the exit code. ValueError and OSError for wrong use or input."""
    target = "lavit.training.pixels.train:train_pixels"
    return run_command("pixels", argv, PixelsTrainingConfig, USAGE, target, FOLDERS, _ending)


def _ending(config: PixelsTrainingConfig, result: Any) -> tuple[Skipped, str, str]:
    ending = f"the pixel pipeline is in {result.path}; try: lavit reconstruct IMAGE --model {result.path}"
    return result.skipped_items, "images could not be read and were skipped", ending
