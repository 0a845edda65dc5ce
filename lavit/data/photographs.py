"""Real photographs that need no download: those that ship with scikit-image or scikit-learn.

Only their files are read; neither package is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# Import name, name, folder in it, and the file names of its real colour photographs, the most telling first. Which of
# them a release of the package holds varies.
SHIPPED = (
    (
        "skimage",
        "scikit-image",
        "data",
        (
            "astronaut.png",
            "chelsea.png",
            "coffee.png",
            "rocket.jpg",
            "motorcycle_left.png",
            "hubble_deep_field.jpg",
            "retina.jpg",
            "ihc.png",
        ),
    ),
    ("sklearn", "scikit-learn", "datasets/images", ("china.jpg", "flower.jpg")),
)


@dataclass(frozen=True)
class Photograph:
    """name: what it is called in its package. source: the package that it ships with."""

    name: str
    source: str
    path: Path


def find_photographs(limit: int | None = None) -> list[Photograph]:
    """The photographs that are installed here, at most ``limit``; an empty list where neither package is."""
    found = []
    for package, source, folder, files in SHIPPED:
        for root in _roots(package):
            for file in files:
                path = root / folder / file
                if path.is_file():
                    found.append(Photograph(path.stem, source, path))
    return found[:limit]


def _roots(package: str) -> list[Path]:
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return []
    return [Path(root) for root in (spec.submodule_search_locations or [])] if spec is not None else []
