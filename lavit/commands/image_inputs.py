"""What commands that work on images share: which files they are given, what cannot be read, and where results go."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from lavit.data.image_folder import ImageFolder
from lavit.data.images import ImageError, load_image


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
            folder = ImageFolder(source)
        except (ValueError, OSError) as error:
            skip(skipped, source, str(error).removeprefix("root: "))
        else:
            yield from map(str, folder.paths)


def read_images(files: Iterable[str], skipped: list[Unread]) -> Iterator[tuple[str, Image.Image]]:
    """Each file with its image, read when it is taken; one that cannot be read is skipped."""
    for file in files:
        try:
            yield file, load_image(file)
        except ImageError as error:
            skip(skipped, file, str(error).removeprefix(f"{file}: "))


def skip(skipped: list[Unread], file: str, reason: str) -> None:
    """Say so, and remember it."""
    skipped.append(Unread(file, reason))
    print(f"lavit: skipped {file}: {reason}", file=sys.stderr)


def image_seed(seed: int, image: Image.Image) -> int:
    """From the pixels, so that an image draws the same noise wherever it stands in whatever call."""
    digest = hashlib.blake2b(f"{seed}/{image.size}/".encode(), digest_size=7)
    digest.update(image.tobytes())
    return int.from_bytes(digest.digest(), "little")


def pick_device(name: str | None) -> torch.device:
    """The one of this name, or else a GPU if there is one. ValueError for one that cannot be used."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {name} cannot be used ({str(error).splitlines()[0]})") from error
    return device


def check_file(option: str, target: str) -> None:
    """What can go wrong with an output is told before the work, not after."""
    if Path(target).is_dir() or not Path(target).resolve().parent.is_dir():
        what = "is a folder" if Path(target).is_dir() else "is in a folder that does not exist"
        raise ValueError(f"{option}: expected a file to write, {target} {what}")


def picture_format(option: str, target: str, suffixes: Sequence[str]) -> str:
    """Pillow's name for the format that the target's suffix tells. ValueError where it is none of ``suffixes``."""
    suffix = Path(target).suffix.lower()
    if suffix not in suffixes:
        raise ValueError(f"{option}: expected a name that ends in {listed(suffixes)}, got {target}")
    return Image.registered_extensions()[suffix]


def listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
