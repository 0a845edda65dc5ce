"""Images of a folder in buckets: each is resized and cut to the nearest of a few sizes, and a batch has one size.

An image is resized until it covers its size and cut to it around the middle; the tokenizer sees what is left, which is
what the U-Net is to draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lavit.data import DataStream, ImageError
from lavit.data.image_folder import ImageFiles
from lavit.data.images import image_size
from lavit.pixels.image_sizes import ASPECT_RATIOS, nearest_size
from lavit.training.engine import distributed

Size = tuple[int, int]
"""Height and width in pixels."""


def sizes_of(side: int, buckets: bool, multiple: int) -> tuple[Size, ...]:
    """The sizes that images are cut to: a square, or the release's seven aspect ratios of the same area.

    multiple: of what both sides must be. Raises ValueError naming the size that is not.
    """
    if side < 1 or side % multiple:
        raise ValueError(f"size: expected a positive multiple of {multiple} (VAE and U-Net halve it), got {side}")
    if not buckets:
        return ((side, side),)
    full = ASPECT_RATIOS[0][0]
    found = tuple((height * side // full, width * side // full) for height, width in ASPECT_RATIOS)
    for (height, width), (h, w) in zip(ASPECT_RATIOS, found, strict=True):
        if height * side % (full * multiple) or width * side % (full * multiple):
            raise ValueError(
                f"size: expected one whose buckets are multiples of {multiple}, such as 512 and 1024; "
                f"{side} has one of {h} x {w}"
            )
    return found


def cut(image: Image.Image, size: Size) -> tuple[Image.Image, tuple[int, int]]:
    """The image resized (bicubic) until it covers `size` and cut to it around the middle, and where: (top, left)."""
    top, left, height, width = _cover(image.height, image.width, size)
    if (height, width) != (image.height, image.width):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size[1], top + size[0])), (top, left)


def time_ids(original: Size, size: Size) -> list[int]:
    """What SDXL is told of an image: its own size, where it was cut after resizing (top, left), the size it got."""
    top, left, _, _ = _cover(*original, size)
    return [*original, top, left, *size]


def _cover(height: int, width: int, size: Size) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the resized image that covers `size`."""
    scale = max(size[0] / height, size[1] / width)
    high, wide = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    return (high - size[0]) // 2, (wide - size[1]) // 2, high, wide


class Part:
    """Some of a folder's images."""

    def __init__(self, folder: ImageFiles, numbers: Sequence[int]) -> None:
        self.folder, self.numbers = folder, list(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Image.Image:
        return self.folder[self.numbers[index]]

    def name(self, index: int) -> str:
        return self.folder.name(self.numbers[index])

    @property
    def paths(self) -> list[Path]:
        return [self.folder.paths[number] for number in self.numbers]

    @property
    def fingerprint(self) -> str:
        return hashlib.blake2b(f"{self.folder.fingerprint} {self.numbers}".encode(), digest_size=16).hexdigest()


class Measured:
    """A folder's images with their sizes, read from the headers: which can be used, and which size each is cut to.

    numbers: of the images whose header can be read. originals: their (height, width). bad: (name, reason) of the rest.
    Raises ImageError where there is none that can be read.
    """

    def __init__(self, folder: ImageFiles, sizes: Sequence[Size]) -> None:
        self.folder, self.sizes = folder, tuple(sizes)
        self.numbers: list[int] = []
        self.originals: dict[int, Size] = {}
        self.bad: list[tuple[str, str]] = []
        for number, path in enumerate(folder.paths):
            try:
                self.originals[number] = image_size(path)
                self.numbers.append(number)
            except ImageError as error:
                self.bad.append((str(path), error.reason))
        if not self.numbers:
            raise ImageError(f"no image can be read: {len(self.bad)} failed, the first is {': '.join(self.bad[0])}")

    def size_of(self, number: int) -> Size:
        return nearest_size(*self.originals[number], self.sizes)

    def leave_out(self, bad: Sequence[tuple[int, str, str]]) -> None:
        """bad: (number, name, reason)."""
        gone = {number for number, _, _ in bad}
        self.numbers = [number for number in self.numbers if number not in gone]
        self.bad += [(name, reason) for _, name, reason in bad]


class Buckets:
    """Batches of a folder's images, each of one size; a size comes as often as its images are many.

    Which size comes next follows from how many batches there were: it is the one furthest behind its share. All
    processes go through the sizes in the same order.
    """

    def __init__(self, measured: Measured, batch_size: int, seed: int, workers: int) -> None:
        self.measured = measured
        members: dict[Size, list[int]] = {size: [] for size in measured.sizes}
        for number in measured.numbers:
            members[measured.size_of(number)].append(number)
        self.members = {size: numbers for size, numbers in members.items() if numbers}
        self.taken = [0] * len(self.members)
        self.streams = [
            DataStream(
                Part(measured.folder, numbers),
                batch_size,
                transform=partial(cut_all, size=size),
                seed=seed,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
                workers=workers,
            )
            for size, numbers in self.members.items()
        ]

    @property
    def skipped_items(self) -> list[tuple[str, str]]:
        found = [(item.name, item.reason) for stream in self.streams for item in stream.skipped]
        return [*self.measured.bad, *found]

    def __next__(self) -> dict[str, Tensor]:
        total, count = len(self.measured.numbers), sum(self.taken) + 1
        behind = [count * len(numbers) / total - self.taken[n] for n, numbers in enumerate(self.members.values())]
        chosen = behind.index(max(behind))
        batch = next(self.streams[chosen])
        self.taken[chosen] += 1
        size = list(self.members)[chosen]
        numbers = [self.members[size][index] for index in batch["index"].tolist()]
        told = [time_ids(self.measured.originals[number], size) for number in numbers]
        return {
            "images": batch["images"],
            "index": torch.tensor(numbers),
            "time_ids": torch.tensor(told, dtype=torch.float32),
        }

    def state_dict(self) -> dict[str, Any]:
        sizes = [list(size) for size in self.members]
        return {"sizes": sizes, "taken": list(self.taken), "streams": [s.state_dict() for s in self.streams]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        here = [list(size) for size in self.members]
        if state["sizes"] != here:
            raise ValueError(f"state: was saved with images of the sizes {state['sizes']}, this stream has {here}")
        for stream, saved in zip(self.streams, state["streams"], strict=True):
            stream.load_state_dict(saved)
        self.taken = list(state["taken"])

    def close(self) -> None:
        for stream in self.streams:
            stream.close()


def cut_all(images: Sequence[Image.Image], size: Size) -> Tensor:
    """(n, H, W, 3) uint8."""
    return torch.stack([torch.from_numpy(np.array(cut(image, size)[0])) for image in images])
