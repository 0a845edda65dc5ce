"""What commands that work on images share: which files they are given, and what cannot be read."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lavit.data.image_folder import image_names


@dataclass(frozen=True)
class Unread:
    file: str
    reason: str


def image_files(sources: Iterable[str], skipped: list[Unread]) -> Iterator[str]:
    """The files, and of each folder all images below it; a folder without any is skipped."""
    for source in sources:
        if not Path(source).is_dir():
            yield source
            continue
        try:
            names = image_names(source)
        except (ValueError, OSError) as error:
            skip(skipped, source, str(error).removeprefix("root: "))
        else:
            yield from (str(Path(source, name)) for name in names)


def skip(skipped: list[Unread], file: str, reason: str) -> None:
    """Say so, and remember it."""
    skipped.append(Unread(file, reason))
    tell_skipped(file, reason)


def tell_skipped(name: str, reason: str) -> None:
    print(f"lavit: skipped {one_line(name)}: {reason}", file=sys.stderr)


def one_line(name: str) -> str:
    """A file's name as a line of text can hold it: line ends, and bytes that are no text, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def image_seed(seed: int, image: Image.Image) -> int:
    """From the pixels, so that an image draws the same noise wherever it stands in whatever call."""
    digest = hashlib.blake2b(f"{seed}/{image.size}/".encode(), digest_size=7)
    digest.update(image.tobytes())
    return int.from_bytes(digest.digest(), "little")
