"""Which images are held out: decided for each by its name alone, the same in every stage, on every machine, and for
images that were there before others came.

The name of an image is its path below the data folder, in the folder's own bytes, with "/" between its parts. A first
part ``images`` does not count: stage 1 reads FOLDER, where the file is ``images/x.png``, or FOLDER/images, where it is
``x.png``, and stage 2 finds it by its annotations; all hold out the same pictures.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lavit.data.captioned_folder import CaptionedFolder

IMAGES = "images"
"""Where the image files of a captioned folder are."""


def name_of(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> bytes:
    """The name by which an image is held out or not. ValueError for a path that is not below the root."""
    relative = PurePath(path).relative_to(root)
    if len(relative.parts) > 1 and relative.parts[0] == IMAGES:
        relative = relative.relative_to(IMAGES)
    return os.fsencode(relative.as_posix())


def place_of(name: bytes, seed: int = 0) -> float:
    """A number in [0, 1) that looks random and depends on the name and the seed alone."""
    digest = hashlib.blake2b(name, digest_size=8, salt=seed.to_bytes(16, "little", signed=True)).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def check_share(name: str, share: float) -> None:
    """ValueError for a number that is no share of the images."""
    if not 0 <= share < 1:
        raise ValueError(f"{name}: expected a share of the images in [0, 1), got {share}")


def is_held_out(name: bytes, share: float, seed: int = 0) -> bool:
    """Whether the image of a name is held out. Of a larger share the held-out images are those of a smaller one and
    more."""
    return place_of(name, seed) < share


def divided(
    paths: Sequence[Path], root: str | os.PathLike[str], share: float, seed: int = 0
) -> tuple[list[Path], list[Path]]:
    """The files to train on and those held out, each in their order. ValueError for a share outside [0, 1)."""
    check_share("share", share)
    held = [is_held_out(name_of(path, root), share, seed) for path in paths]
    return [p for p, h in zip(paths, held, strict=True) if not h], [p for p, h in zip(paths, held, strict=True) if h]


def sample(paths: Iterable[Path], root: str | os.PathLike[str], count: int) -> list[Path]:
    """At most `count` of the files, in the order given: those of the lowest places, so that the same ones are chosen in
    every stage and the choice hardly changes when files are added."""
    paths = list(paths)
    if len(paths) <= count:
        return paths
    chosen = set(sorted(paths, key=lambda path: place_of(name_of(path, root)))[:count])
    return [path for path in paths if path in chosen]


def divided_folder(
    folder: CaptionedFolder, share: float, seed: int = 0
) -> tuple[CaptionedFolder, CaptionedFolder, int]:
    """A captioned folder's part to train on and the part held out, and how many edits are in neither, since they need
    images of both. Texts alone, and the names of what cannot be used, go with the first."""
    check_share("share", share)
    held = {path for path in folder.paths if is_held_out(name_of(path, folder.root), share, seed)}
    train, out = only_of(folder, lambda path: path not in held), only_of(folder, held.__contains__)
    lost = len(folder.edits) - len(train.edits) - len(out.edits)
    return train, replace(out, texts=[], bad=[]), lost


def only_of(folder: CaptionedFolder, wanted: Callable[[Path], bool]) -> CaptionedFolder:
    """What the folder says of some of its images; an edit needs both of its own. Texts stay."""
    return replace(
        folder,
        captions=[item for item in folder.captions if wanted(item.image)],
        questions=[item for item in folder.questions if wanted(item.image)],
        edits=[item for item in folder.edits if wanted(item.image) and wanted(item.result)],
    )
