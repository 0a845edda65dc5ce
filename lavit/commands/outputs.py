"""Where the results of commands go. What can go wrong with an output is told before the work, not after."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image

from lavit.data.atomic_write import atomic_write

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
LINES = ".jsonl"
"""The end of the name of a file of tokens with a line for each image."""


def check_file(option: str, target: str | None) -> None:
    """ValueError where no file of this name can be written. Fine: none, and - for the standard output."""
    if target in (None, "-"):
        return
    if Path(target).is_dir() or not Path(target).resolve().parent.is_dir():
        what = "is a folder" if Path(target).is_dir() else "is in a folder that does not exist"
        raise ValueError(f"{option}: expected a file to write, {target} {what}")


def check_picture(option: str, target: str, suffixes: Sequence[str] = PICTURES) -> None:
    """ValueError where the suffix tells no format of a picture."""
    if Path(target).suffix.lower() not in suffixes:
        wanted = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise ValueError(f"{option}: expected a name that ends in {wanted}, got {target}")


def check_not_read(
    option: str, targets: Sequence[str | Path], sources: Iterable[str | Path], what: str = "one of the images"
) -> None:
    """ValueError where a result would take the place of an image, or of ``what``, that is read."""
    targets = [target for target in targets if Path(target).exists()]
    if not targets:
        return
    read = {Path(source).resolve() for source in sources}
    for target in targets:
        if Path(target).resolve() in read:
            raise ValueError(f"{option}: {target} is {what} to be read, and would be overwritten")


def write_picture(image: Image.Image, target: str | Path) -> None:
    """In the format that the suffix tells, whole or not at all."""
    with atomic_write(target) as file:
        image.save(file, Image.registered_extensions()[Path(target).suffix.lower()])


def write_text(target: str, text: str) -> None:
    """Into a file, whole or not at all; - for the standard output."""
    with open_text(target) as file:
        file.write(text)


@contextmanager
def open_text(target: str) -> Iterator[IO[str]]:
    """A file that is there whole when the block ends, or not at all; - for the standard output."""
    if target == "-":
        yield sys.stdout
        return
    with atomic_write(target, "w") as file:
        yield file
