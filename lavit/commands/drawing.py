"""What the commands that draw pixels share: their options, and writing what was drawn."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from lavit.commands.folders import load_pixels
from lavit.commands.inputs import listed
from lavit.files import atomic_write
from lavit.kernels import Ragged

if TYPE_CHECKING:
    from lavit.pixels import LaVITPixelPipeline

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

FOLDERS = """A model that draws is two folders: --model, the language model that `lavit train language` left, and
--pixels, the pipeline that `lavit train pixels` left, by default `pixels` in the former. Both hold
the same tokenizer."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of the pixels."""
    add = parser.add_argument
    add("--steps", type=int, metavar="N", help="of denoising; else the pipeline's own, 50 or 25")
    add("--guidance", type=float, metavar="G", help="of the pixels by the tokens, 1 is off; else its own, 5 or 7")
    add("--size", metavar="WxH", help="width and height in pixels, such as 1152x896; else what the model was made for")
    add("--batch-size", type=int, default=16, metavar="B", help="images at a time [16]")
    add("--device", metavar="D", help="cpu, cuda, cuda:1, ...; a GPU is taken if there is one")


def check_options(options: argparse.Namespace) -> None:
    """ValueError naming the option that is out of range. Leaves what the pipeline is called with as ``drawing``."""
    check_at_least(options, batch_size=1, steps=1, guidance=0, seed=0)
    if options.seed is not None and options.seed >= 2**63:
        raise ValueError(f"--seed: expected a number below 2**63, got {options.seed}")
    chosen: dict[str, Any] = {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
    if options.size is not None:
        sides = re.fullmatch(r"(\d+)[xX](\d+)", options.size)
        if sides is None:
            raise ValueError(f"--size: expected width and height such as 1152x896, got {options.size}")
        chosen |= {"width": int(sides[1]), "height": int(sides[2])}
    options.drawing = {name: value for name, value in chosen.items() if value is not None}


def check_at_least(options: argparse.Namespace, **least: float) -> None:
    """ValueError for an option that was given, and is less or not finite."""
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and not bound <= value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {bound}, got {value}")


def ready(folder: str, device: torch.device) -> LaVITPixelPipeline:
    """The pipeline of a folder; its progress is shown where somebody looks."""
    pipeline = load_pixels(folder, device)
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    return pipeline


def draw(
    pipeline: LaVITPixelPipeline, codes: Ragged, seeds: Sequence[int], names: Sequence[str], settings: dict[str, Any]
) -> list[Image.Image]:
    """An image for each row of codes; says which of them (by their names) the safety checker has blackened."""
    drawn = pipeline(codes, seeds=seeds, **settings)
    for name, flagged in zip(names, drawn.nsfw_content_detected or (), strict=False):
        if flagged:
            print(f"lavit: {name} was blackened by the safety checker", file=sys.stderr)
    return list(drawn.images)


def write_picture(image: Image.Image, target: str | Path) -> None:
    """In the format that the suffix tells, whole or not at all."""
    with atomic_write(target) as file:
        image.save(file, Image.registered_extensions()[Path(target).suffix.lower()])


def is_picture(target: str) -> bool:
    return Path(target).suffix.lower() in SUFFIXES


def check_picture(option: str, target: str) -> None:
    if not is_picture(target):
        raise ValueError(f"{option}: expected a name that ends in {listed(SUFFIXES)}, got {target}")


def check_not_read(option: str, targets: Sequence[str | Path], sources: Sequence[str]) -> None:
    """ValueError where a result would take the place of an image that is read."""
    read = {Path(source).resolve() for source in sources}
    for target in targets:
        if Path(target).resolve() in read:
            raise ValueError(f"{option}: {target} is one of the images to be read, and would be overwritten")
