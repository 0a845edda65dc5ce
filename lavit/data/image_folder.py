"""A folder of image files as a dataset."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from lavit.data.images import MAX_PIXELS, load_image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")


class ImageFiles:
    """Image files below a folder as a data set: ``files[i]`` is RGB, or an ImageError (`lavit.data.load_image`).

    root: the folder. paths: the files, in any order. ``len``, ``paths``, ``name(i)``.
    """

    def __init__(self, root: str | os.PathLike[str], paths: Sequence[Path], *, max_pixels: int = MAX_PIXELS) -> None:
        self.root, self.paths, self.max_pixels = Path(root), list(paths), max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return load_image(self.paths[index], max_pixels=self.max_pixels)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    @property
    def fingerprint(self) -> str:
        """Of the relative paths in their order: the same as long as no file is added, removed or renamed."""
        names = "\0".join(path.relative_to(self.root).as_posix() for path in self.paths)
        return hashlib.blake2b(names.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


class ImageFolder(ImageFiles):
    """The image files below a folder, at any depth, in the order of their relative paths.

    The order is the same on every machine and file system. Names that begin with a dot are left out (thumbnails,
    resource forks); linked folders are followed, each real folder once.

    root: the folder. FileNotFoundError or NotADirectoryError where it is none, ValueError where no image is in it.
    extensions: which files count as images, by the end of the name, upper or lower case.
    """

    def __init__(
        self, root: str | os.PathLike[str], extensions: Sequence[str] = EXTENSIONS, *, max_pixels: int = MAX_PIXELS
    ):
        names = image_names(root, extensions)
        super().__init__(root, [Path(root, name) for name in names], max_pixels=max_pixels)


def image_names(root: str | os.PathLike[str], extensions: Sequence[str] = EXTENSIONS) -> list[str]:
    """What an `ImageFolder` holds, in its order and with its errors, as paths below the root with "/" between their
    parts: of a million files this takes far less memory."""
    folder = Path(root)
    if not folder.exists():
        raise FileNotFoundError(f"root: there is no folder {root}")
    if not folder.is_dir():
        raise NotADirectoryError(f"root: expected a folder, got the file {root}")
    if isinstance(extensions, str) or not extensions:
        raise ValueError(f"extensions: expected a list such as ['.jpg', '.png'], got {extensions!r}")
    endings = tuple(sorted({"." + e.lower().lstrip(".") for e in extensions}))
    images, others = [], 0
    for below, names in _folders(folder):
        found = [below + name for name in names if name.lower().endswith(endings)]
        images += found
        others += len(names) - len(found)
    if not images:
        raise ValueError(
            f"root: no image file below {root} (looked for {' '.join(endings)}; other files there: {others})"
        )
    images.sort()
    return images


def _folders(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder below the root, as what stands before its files' names, with the names."""
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise error

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        # Sorted, so that of two links to one folder the same one is taken everywhere.
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        below = Path(folder).relative_to(root).as_posix()
        yield "" if below == "." else f"{below}/", [name for name in names if not name.startswith(".")]
