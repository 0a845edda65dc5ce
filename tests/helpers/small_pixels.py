"""Small U-Nets, tokenizers and pictures for the tests of stage 3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_tokenizer import TINY

from lavit.pixels import PixelConditioner, small_unet
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig
from lavit.training.pixels.objective import Trained
from lavit.training.pixels.recipe import PixelsTrainingConfig

SMALL = {"channels": [8, 16], "groups": 4}


def tokenizer(**changes) -> LaVITTokenizer:
    torch.manual_seed(1)
    return LaVITTokenizer(LaVITTokenizerConfig.preset("small", **TINY | changes)).eval()


def settings(preset="small", **changes) -> PixelsTrainingConfig:
    short = {"loop.steps": 6, "loop.batch_size": 4, "loop.log_every": 1, "device": "cpu", "tensorboard": False}
    small = {"unet": SMALL} if preset == "small" and "model" not in changes else {}
    short |= {"scenes": 24} if preset == "small" else {}
    if preset != "small":
        short |= {"loop.precision": "fp32", "loop.accumulate": 1, "gradient_checkpointing": False, "workers": 0}
        short |= {"cache.enabled": False}
    return PixelsTrainingConfig.recipe(preset, short | small | {"schedule.warmup": 0} | changes)


def trained(decay=0.9) -> Trained:
    torch.manual_seed(2)
    config = tokenizer().config
    unet = small_unet(image_size=32, condition_dim=16, **SMALL)
    return Trained(unet, PixelConditioner.for_tokenizer(config, condition_dim=16), decay)


def pictures(folder: Path, sizes) -> Path:
    folder.mkdir(parents=True)
    for number, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder
