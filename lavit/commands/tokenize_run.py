"""The work of ``lavit tokenize``, when its words are right."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lavit.commands import outputs
from lavit.commands.image_inputs import Unread, image_files, image_seed, read_images
from lavit.commands.model_folders import load_tokenizer
from lavit.commands.options import pick_device
from lavit.report.token_map import LARGEST, draw_sheet, draw_token_map, shrink
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer

SHEET_TILES, TILE = 400, 256


@dataclass
class Tokenized:
    """One image. kept: (row, column) of the patch of each id."""

    file: str
    size: tuple[int, int]
    grid: tuple[int, int]
    ids: list[int]
    kept: list[tuple[int, int]]

    def record(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "size": self.size,
            "grid": self.grid,
            "tokens": len(self.ids),
            "ids": self.ids,
            "kept": self.kept,
        }


@dataclass(frozen=True)
class Picture:
    """What is kept of an image between reading and tokenizing; the image itself may be large.

    pixels: (1, 3, S, S), what the model sees. seed: of the noise, None without sampling. small: for the map.
    """

    file: str
    size: tuple[int, int]
    pixels: Tensor
    seed: int | None
    small: Image.Image


def run(options: argparse.Namespace) -> int:
    device = pick_device(options.device)
    seed = secrets.randbits(63) if options.sample else options.seed
    model, processor = load_tokenizer(options.model, device)

    skipped: list[Unread] = []
    files = list(image_files(options.images, skipped))
    done: list[Tokenized] = []
    maps: list[Image.Image] = []
    tile = TILE if len(files) > 1 else None
    pictures = (prepare(file, image, processor, seed) for file, image in read_images(files, skipped))
    while batch := list(islice(pictures, options.batch_size)):
        results = tokenize(model, batch)
        done += results
        if options.map:
            room = SHEET_TILES - len(maps)
            maps += [_map(r, p.small, tile) for r, p in islice(zip(results, batch, strict=True), room)]
    if not done:
        raise ValueError(f"none of the images could be read ({len(skipped)} left out)")

    if options.json:
        _write_json(options.json, options.model, seed, done, skipped)
    else:
        print(table(done))
    if options.map:
        sheet = maps[0] if len(maps) == 1 else draw_sheet(maps, [_label(d) for d in done[: len(maps)]], TILE)
        outputs.write_picture(sheet, options.map)
        if len(maps) < len(done):
            print(f"lavit: {options.map} shows the first {len(maps)} of {len(done)} images", file=sys.stderr)
    return 1 if skipped else 0


def prepare(file: str, image: Image.Image, processor: LaVITImageProcessor, seed: int | None = None) -> Picture:
    """An RGB image for `tokenize`. With a seed its selection will be sampled, else it is deterministic."""
    own = None if seed is None else image_seed(seed, image)
    return Picture(file, image.size, processor(image), own, shrink(image, LARGEST))


def tokenize(model: LaVITTokenizer, pictures: Sequence[Picture]) -> list[Tokenized]:
    """The tokens of at least one picture, all of them with a seed or all without."""
    side = model.config.image_size // model.config.patch_size
    pixels = torch.cat([p.pixels for p in pictures]).to(model.device)
    seeds = [p.seed for p in pictures if p.seed is not None]
    tokens = model.encode(pixels, seeds=seeds or None, deterministic=not seeds).to("cpu")
    bounds = tokens.cu_seqlens.tolist()
    results = []
    for number, picture in enumerate(pictures):
        kept = [divmod(p, side) for p in tokens.keep[number].nonzero().flatten().tolist()]
        ids = tokens.ids[bounds[number] : bounds[number + 1]].tolist()
        results.append(Tokenized(picture.file, picture.size, (side, side), ids, kept))
    return results


def table(results: Sequence[Tokenized], shown: int = 8) -> str:
    """A line for each image: file, pixels, tokens of patches, the first ids."""
    rows = [("file", "pixels", "tokens", "of", "ids")]
    for r in results:
        ids = " ".join(map(str, r.ids[:shown])) + (" ..." if len(r.ids) > shown else "")
        rows.append((r.file, f"{r.size[0]}x{r.size[1]}", str(len(r.ids)), str(r.grid[0] * r.grid[1]), ids))
    file, pixels, tokens, patches = (max(len(row[c]) for row in rows) for c in range(4))
    return "\n".join(
        f"{row[0]:<{file}}  {row[1]:>{pixels}}  {row[2]:>{tokens}}  {row[3]:>{patches}}  {row[4]}".rstrip()
        for row in rows
    )


def _map(result: Tokenized, image: Image.Image, tile: int | None) -> Image.Image:
    keep = torch.zeros(result.grid, dtype=torch.bool)
    for row, column in result.kept:
        keep[row, column] = True
    # On a sheet the numbers would be too small to read.
    picture = draw_token_map(image, keep.flatten(), result.grid, result.ids if tile is None else None)
    return picture if tile is None else shrink(picture, tile)


def _label(result: Tokenized) -> str:
    return f"{Path(result.file).name}: {len(result.ids)} of {result.grid[0] * result.grid[1]}"


def _write_json(
    target: str, model: str, seed: int | None, done: Sequence[Tokenized], skipped: Sequence[Unread]
) -> None:
    head = {"model": model, "selection": "deterministic" if seed is None else "sampled", "seed": seed}
    parts = {"images": [d.record() for d in done], "skipped": [vars(s) for s in skipped]}
    # A line for each image: to be read by people and by line-wise tools too.
    lines = [json.dumps(head)[1:-1]]
    for name, records in parts.items():
        body = ",\n  ".join(json.dumps(r) for r in records)
        lines.append(f'"{name}": [\n  {body}\n ]' if records else f'"{name}": []')
    outputs.write_text(target, "{" + ",\n ".join(lines) + "}\n")
