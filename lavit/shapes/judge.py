"""A program that looks at images of the shapes world and names what stands in each cell, from the pixels alone.

Every cell is compared with what the world can draw into it: every shape in every colour, at every place and size up to
half a pixel. The nearest one by squared error, or nothing, is what is seen. It never learns, and knows no truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from lavit.data.record import Record
from lavit.shapes.questions import possible_scenes
from lavit.shapes.scores import scene_chance, score_scenes
from lavit.shapes.world import CELL, CELLS, COLOURS, EMPTY, GREY, GRID, RADIUS, RGB, SHAPES, SIZE, render

UNCLEAR = -1
"""A cell that nothing fits."""

LIMIT = 0.25
"""How much of a cell's squared difference from grey what is seen may leave unexplained. The world's own scenes, with
their noise, leave less than a tenth; shapes drawn half transparent, and two colours mixed, leave more."""

_STEP = 0.5  # pixels between the places and the radii that are compared
_AT_ONCE = 512  # images: bounds the memory


@dataclass(frozen=True)
class Rates(Record):
    """scene: share of scenes with every cell right. object_recall: of the objects asked for, those found at their place
    with their shape and colour. cell: share of cells that are right, empty ones among them."""

    scene: float
    object_recall: float
    cell: float


@dataclass(frozen=True)
class Drawn(Record):
    """What was seen in ``scenes`` images beside what was asked for.

    unclear: share of cells that nothing fits; they are wrong. constant and other are what guessing scores: for each
    figure the best answer given always (of a scene; for ``cell`` of a cell), and another scene of the world each time.
    """

    scenes: int
    rates: Rates
    unclear: float
    constant: Rates
    other: Rates

    @property
    def scene(self) -> float:
        return self.rates.scene

    @property
    def object_recall(self) -> float:
        return self.rates.object_recall

    @property
    def cell(self) -> float:
        return self.rates.cell


class SceneReader:
    """Reads images of the shapes world.

    limit: in (0, 1], see `LIMIT`; with 1 what is nearest is always named, however far it is.
    """

    def __init__(self, limit: float = LIMIT) -> None:
        if not 0 < limit <= 1:
            raise ValueError(f"limit: expected a number in (0, 1], got {limit}")
        self.limit = limit

    def read(self, images: Any) -> np.ndarray:
        """What stands in each cell: (n, 4) int64 as ``Scenes.cells`` has it, or `UNCLEAR`.

        images: (n, 32, 32, 3) uint8, or floating-point numbers in [0, 1]; or a list of RGB images of that size (PIL).
        Raises ValueError for others, naming the first value that is not finite.
        """
        pixels = _pixels(images)
        parts = [self._read(pixels[begin : begin + _AT_ONCE]) for begin in range(0, len(pixels), _AT_ONCE)]
        return np.concatenate(parts) if parts else np.empty((0, CELLS), dtype=np.int64)

    def score(self, images: Any, cells: np.ndarray) -> Drawn:
        """What is seen in ``images`` beside the ``cells`` (n, 4) that were asked for. Raises ValueError for an empty
        set, another number of cells than images, and as :meth:`read`."""
        return score_cells(self.read(images), cells)

    def _read(self, images: np.ndarray) -> np.ndarray:
        """‖d - m v‖² = ‖d‖² - (2 m·(d v) - ‖m‖² ‖v‖²): a shape of cover m, a colour that differs from grey by v."""
        n = len(images)
        scale = np.float32(1 / 255 if images.dtype == np.uint8 else 1)
        difference = images.astype(np.float32) * scale - np.float32(GREY)
        grid = difference.reshape(n, GRID, CELL, GRID, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
        d = np.ascontiguousarray(grid).reshape(n * CELLS, CELL * CELL, 3)
        empty = np.einsum("npc,npc->n", d, d)
        gain = np.zeros((n * CELLS, 1 + len(SHAPES) * len(COLOURS)), dtype=np.float32)
        for colour, v in enumerate(RGB - np.float32(GREY)):
            seen = d @ v
            for shape, covers in enumerate(_covers()):
                found = seen @ covers.T
                found *= 2
                found -= (covers * covers).sum(1) * (v @ v)
                gain[:, 1 + shape * len(COLOURS) + colour] = found.max(1)
        kinds = gain.argmax(1)
        unexplained = empty - gain.max(1)
        kinds[unexplained > self.limit * np.maximum(empty, _faintest())] = UNCLEAR
        return kinds.reshape(n, CELLS)


def score_cells(found: np.ndarray, asked: np.ndarray) -> Drawn:
    """Cells (n, 4) that were found and asked for -> the rates. Raises ValueError for other shapes and an empty set."""
    found, asked = np.asarray(found), np.asarray(asked)
    report = score_scenes(found, asked)
    rates = Rates(report.score.exact, report.score.recall, float((found == asked).mean()))
    return Drawn(len(asked), rates, float((found == UNCLEAR).mean()), *drawn_chance())


@lru_cache(maxsize=1)
def drawn_chance() -> tuple[Rates, Rates]:
    """What guessing scores, computed from all scenes that the world can show: (constant, other) as in `Drawn`."""
    cells, share = possible_scenes()
    # All places are alike.
    kinds = np.bincount(cells[:, 0], share)
    constant, other = scene_chance()
    return (
        Rates(constant.exact, constant.recall, float(kinds.max())),
        Rates(other.exact, other.recall, float(kinds @ kinds)),
    )


def _pixels(images: Any) -> np.ndarray:
    if isinstance(images, Sequence):
        images = np.stack([np.asarray(image) for image in images]) if images else np.empty((0, SIZE, SIZE, 3), np.uint8)
    pixels = np.asarray(images)
    wanted = f"expected (n, {SIZE}, {SIZE}, 3) of uint8 or floating-point numbers in [0, 1]"
    if pixels.ndim != 4 or pixels.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"images: {wanted}, got {tuple(pixels.shape)}")
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(f"images: {wanted}, got {pixels.dtype}")
    bad = ~((pixels >= 0) & (pixels <= 1))
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"images: {wanted}, got {pixels[first]} in image {first[0]}")
    return pixels


@lru_cache(maxsize=1)
def _covers() -> tuple[np.ndarray, ...]:
    """For each shape, how much of every pixel of a cell it covers at every place and size: (jitters, 256) float32."""
    radii = np.arange(RADIUS[0], RADIUS[1] + _STEP / 2, _STEP)
    jitters = []
    for radius in radii:
        slack = CELL / 2 - 1 - radius
        offsets = np.linspace(-slack, slack, round(2 * slack / _STEP) + 1)
        jitters += [(CELL / 2 + x, CELL / 2 + y, radius) for x in offsets for y in offsets]
    jitter = np.array(jitters, dtype=np.float32)
    centre, radius = np.full((len(jitter), CELLS, 2), CELL / 2, np.float32), np.ones((len(jitter), CELLS), np.float32)
    centre[:, 0], radius[:, 0] = jitter[:, :2], jitter[:, 2]
    covers = []
    for shape in range(len(SHAPES)):
        cells = np.full((len(jitter), CELLS), EMPTY)
        cells[:, 0] = 1 + shape * len(COLOURS)  # in the first colour, whose first channel tells the cover
        drawn = render(cells, centre, radius)[:, :CELL, :CELL, 0].reshape(len(jitter), -1)
        covers.append((drawn - np.float32(GREY)) / (RGB[0, 0] - np.float32(GREY)))
    return tuple(covers)


@lru_cache(maxsize=1)
def _faintest() -> float:
    """The least squared difference from grey that an object makes."""
    colours = ((RGB - np.float32(GREY)) ** 2).sum(1)
    return float(min((covers * covers).sum(1).min() for covers in _covers()) * colours.min())
