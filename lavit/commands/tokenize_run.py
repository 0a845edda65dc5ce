"""The work of ``lavit tokenize``, when its words are right: images are read ahead of the encoder, and what they become
is written while it computes on."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lavit.commands import outputs
from lavit.commands.image_inputs import Unread, image_files, image_seed, skip
from lavit.commands.model_folders import load_tokenizer, prepare_encoder
from lavit.commands.options import pick_device, pick_workers
from lavit.commands.token_outputs import Maps, Output, Table, Tokenized, json_file
from lavit.data.images import ImageError, load_image
from lavit.data.prefetch import Entry, Pipeline, Timing
from lavit.data.transfer import Transfer
from lavit.report.token_map import LARGEST, shrink
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer


@dataclass(frozen=True)
class Picture:
    """What is kept of an image between reading and tokenizing; the image itself may be large.

    size: of the image. resized: to what the model sees. seed: of the noise, None without sampling. small: for the map.
    """

    size: tuple[int, int]
    resized: Image.Image
    seed: int | None
    small: Image.Image | None


def run(options: argparse.Namespace) -> int:
    device = pick_device(options.device)
    seed = secrets.randbits(63) if options.sample else options.seed
    skipped: list[Unread] = []
    files = list(image_files(options.images, skipped))
    for option, target in (("--json", options.json), ("--map", options.map)):
        outputs.check_not_read(option, [target] if target else [], files)
    model, processor = load_tokenizer(options.model, device)
    prepare_encoder(model, options, max(1, min(options.batch_size, len(files))))
    maps = Maps(options.map, several=len(files) > 1) if options.map else None
    encoder = Encoder(model, processor)
    with ExitStack() as opened:
        head = {"model": options.model, "selection": "deterministic" if seed is None else "sampled", "seed": seed}
        table = None if options.json else Table()
        output: Output = table or opened.enter_context(json_file(options.json, head))
        for unread in skipped:
            output.skip(unread)

        def read(file: str) -> Picture:
            return prepare(load_image(file), processor, seed, shown=maps is not None and not maps.full)

        def write(entries: Sequence[Entry], tokens: Any) -> None:
            results = iter(encoder.results(tokens)) if tokens is not None else iter(())
            for file, picture in entries:
                if isinstance(picture, ImageError):
                    skip(skipped, file, picture.reason)
                    output.skip(skipped[-1])
                    continue
                ids, kept = next(results)
                result = Tokenized(file, picture.size, encoder.grid, ids, kept)
                output.add(result)
                if maps is not None:
                    maps.add(result, picture.small)

        timing = Pipeline(
            read,
            encoder.gather,
            encoder.encode,
            write,
            batch_size=options.batch_size,
            workers=pick_workers(options.workers),
        ).run(files)
        if not timing.items:
            raise ValueError(f"none of the images could be read ({len(skipped)} left out)")
    if table is not None:
        table.print()
    if maps is not None:
        maps.write()
    if timing.batches > 1:  # of a single one everything waits for everything
        print(f"lavit: {describe(timing)}", file=sys.stderr)
    return 1 if skipped else 0


def prepare(
    image: Image.Image, processor: LaVITImageProcessor, seed: int | None = None, *, shown: bool = False
) -> Picture:
    """An RGB image for an `Encoder`. With a seed its selection will be sampled, else it is deterministic. shown: a map
    of it may be drawn."""
    own = None if seed is None else image_seed(seed, image)
    return Picture(image.size, processor.resize(image), own, shrink(processor.seen(image), LARGEST) if shown else None)


class Encoder:
    """The tokens of pictures, all of them with a seed or all without, in the steps of a `Pipeline`."""

    def __init__(self, model: LaVITTokenizer, processor: LaVITImageProcessor) -> None:
        side = model.config.image_size // model.config.patch_size
        self.model, self.processor, self.grid = model, processor, (side, side)
        self._transfer = Transfer(model.device)

    def gather(self, pictures: Sequence[Picture]) -> Any:
        pixels = self.processor([picture.resized for picture in pictures])
        return self._transfer.send(pixels), [p.seed for p in pictures if p.seed is not None]

    def encode(self, batch: Any) -> Any:
        sent, seeds = batch
        tokens = self.model.encode(self._transfer.receive(sent), seeds=seeds or None, deterministic=not seeds)
        return self._transfer.fetch(tokens)

    def results(self, tokens: Any) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Of each picture its ids, and (row, column) of their patches."""
        ids, cu_seqlens, keep = self._transfer.take(tokens)
        bounds, columns = cu_seqlens.tolist(), self.grid[1]
        return [
            (
                ids[bounds[number] : bounds[number + 1]].tolist(),
                [divmod(patch, columns) for patch in row.nonzero().flatten().tolist()],
            )
            for number, row in enumerate(keep)
        ]


def describe(timing: Timing) -> str:
    """Images a second, and of its time what each part waits."""
    rate = f"{timing.items} images in {timing.seconds:.1f} s, {timing.rate:.1f} images/s"
    if not timing.readers:
        return f"{rate}; nothing was read ahead (--workers 0)"
    of = {name: f"{100 * share:.0f} %" for name, share in timing.shares().items()}
    return (
        f"{rate}; of the time, the encoder waited {of['starved']} for images and {of['blocked']} for the writer, "
        f"{timing.readers} readers {of['readers_idle']} for room, the writer {of['writer_idle']} for tokens"
    )
