"""``lavit reconstruct``: images to tokens, and back to pixels."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lavit.commands import outputs, pixel_options
from lavit.commands.image_inputs import Unread, image_files, image_seed, one_line, skip
from lavit.commands.model_folders import pixels_folder, prepare_encoder
from lavit.commands.options import add_workers, check_at_least, command_parser, pick_device, pick_workers
from lavit.data.images import ImageError, load_image
from lavit.data.prefetch import Entry, Pipeline

DESCRIPTION = """Turn images into tokens, and draw them again from these. Files of any usual format, and folders (all
images below them).

--model is a folder that holds a pixel pipeline, as `lavit train pixels` leaves it: the pipeline's own, or that of a
language model with the pipeline in `pixels`."""

EPILOG = """--out: a file (.png, .jpg, .jpeg, .webp) for one image; else a folder, made if it is not there, that gets a
PNG named after each image. Existing files are replaced, but none of the images that are read.
The selection of patches is deterministic. What becomes of an image depends on the model, its pixels and the seed, not
on the other images of the call.
An image that cannot be read is named and left out. Exit code 0; 1 if some were left out; 2 if all were, or on an error.
"""


def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    place = pixels_folder(options.model, options.pixels)
    device = pick_device(options.device)
    skipped: list[Unread] = []
    files = list(image_files(options.images, skipped))
    targets = _targets(options.out, options.images, files)
    outputs.check_not_read("--out", list(targets.values()), files)
    pipeline = pixel_options.ready(place, device, options)
    processor, tokenizer = pipeline.image_processor, pipeline.tokenizer
    if processor is None:
        raise ValueError(f"{place} has no image_processor, without which no image can be read")
    prepare_encoder(tokenizer, options, max(1, min(options.batch_size, len(files))))

    def read(file: str) -> tuple[str, Image.Image, int]:
        image = load_image(file)
        return file, processor.resize(image), image_seed(options.seed, image)

    def draw(batch: Sequence[tuple[str, Image.Image, int]]) -> tuple[list[Image.Image], list[int], int]:
        names, images, seeds = zip(*batch, strict=True)
        tokens = tokenizer.encode(processor(list(images)).to(device, tokenizer.dtype), deterministic=True)
        drawn = pixel_options.draw(pipeline, tokens.ragged(), seeds, names, options.drawing)
        return drawn, tokens.lengths().tolist(), tokens.keep.shape[1]

    def write(entries: Sequence[Entry], result: Any) -> None:
        drawn, counts, patches = result or ((), (), 0)
        results = zip(drawn, counts, strict=True)
        for file, found in entries:
            if isinstance(found, ImageError):
                skip(skipped, file, found.reason)
                continue
            again, count = next(results)
            targets[file].parent.mkdir(parents=True, exist_ok=True)
            outputs.write_picture(again, targets[file])
            print(f"{one_line(file)}: {count} of {patches} tokens, {one_line(str(targets[file]))}")

    workers = pick_workers(options.workers)
    timing = Pipeline(read, list, draw, write, batch_size=options.batch_size, workers=workers).run(files)
    if not timing.items:
        raise ValueError(f"none of the images could be read ({len(skipped)} left out)")
    return 1 if skipped else 0


def _targets(out: str, sources: Sequence[str], files: Sequence[str]) -> dict[str, Path]:
    """Where each image goes; ValueError where that cannot be."""
    path = Path(out)
    if path.suffix.lower() in outputs.PICTURES and not path.is_dir():
        if list(files) != list(sources) or len(files) != 1:
            raise ValueError(f"--out: expected a folder for several images, got the file {out}")
        outputs.check_file("--out", out)
        return {files[0]: path}
    if path.exists() and not path.is_dir():
        raise ValueError(f"--out: expected a folder or an image to write, {out} is another file")
    taken: set[str] = set()
    targets: dict[str, Path] = {}
    for file in files:
        stem, number = Path(file).stem, 1
        while (name := stem if number == 1 else f"{stem}-{number}").lower() in taken:
            number += 1
        taken.add(name.lower())
        targets.setdefault(file, path / f"{name}.png")
    return targets


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("reconstruct", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("images", metavar="IMAGE", nargs="+", help="an image file or a folder of them")
    add("--model", metavar="DIR", help="folder of a pixel pipeline, or of a language model that has one in `pixels`")
    add("--pixels", metavar="DIR", help="folder of a pixel pipeline, in place of the one of --model")
    add("--out", default="reconstructed", metavar="F", help="an image to write, or a folder [reconstructed]")
    add("--seed", type=int, default=0, metavar="S", help="of the noise that images are drawn from [0]")
    add_workers(parser)
    pixel_options.add_options(parser)
    options = parser.parse_args(argv)
    if options.model is None and options.pixels is None:
        raise ValueError("--model DIR is needed: a folder that holds a pixel pipeline, see --help")
    pixel_options.check_options(options)
    check_at_least(options, workers=0)
    return options
