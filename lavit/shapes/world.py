"""The shapes world: small scenes, drawn by a program, of which everything is known.

A scene is a 32x32 image: a grid of 2x2 cells on grey, one to three of them holding a circle, a square or a triangle in
one of four colours, with jittered place and size and slight noise. What stands in each cell is the truth that probes,
captions and checkers are measured against.

Scene ``i`` of a world is a function of ``(seed, split, i)`` alone: a counter-based generator gives every scene its own
words of the stream, so any slice can be drawn without the ones before it, in any order and on any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lavit.data.whole_numbers import whole_number

SHAPES_WORLD = "shapes"
"""What ``--data`` calls it."""

SIZE = 32
GRID = 2
CELL = SIZE // GRID
CELLS = GRID * GRID
MAX_OBJECTS = 3
SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue", "yellow")
PLACES = ("top left", "top right", "bottom left", "bottom right")
EMPTY = 0
NUM_CLASSES = 1 + len(SHAPES) * len(COLOURS)
"""What a cell can hold: nothing (0), or ``1 + shape * 4 + colour``."""

SPLITS = ("train", "test")
SCENES, QUESTIONS, EDITS = range(3)
"""What a world draws; each has random words of its own."""

RGB = np.array([[0.86, 0.16, 0.16], [0.15, 0.68, 0.24], [0.18, 0.32, 0.88], [0.93, 0.83, 0.17]], dtype=np.float32)
"""The colours in [0, 1]."""
GREY = 0.5
_NOISE = 0.008  # standard deviation of the pixel noise, in units of the full range
_SEEN = 0.125  # from grey, far above the noise
RADIUS = (4.0, 6.5)  # from and to, in pixels; the largest object still fits into its 16-pixel cell
_NOISE_WORDS = SIZE * SIZE * 3 // 8  # one byte of noise for every channel of every pixel
_TRUTH_WORDS = 4 + 4 * CELLS  # places and count, then shape with colour, x, y and radius for every cell
_WORDS = _NOISE_WORDS + _TRUTH_WORDS
_WORDS_PER_COUNTER = 4  # of Philox4x64
_CHUNK = 2048  # scenes drawn at a time: bounds the memory of the floating-point image

_DECODE_NOISE = np.array([NormalDist().inv_cdf((k + 0.5) / 256) * _NOISE for k in range(256)], dtype=np.float32)


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes. ``images`` (n, 32, 32, 3) uint8; ``cells`` (n, 4) int64, row by row, see ``NUM_CLASSES``."""

    images: np.ndarray
    cells: np.ndarray

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, rows: slice) -> Scenes:
        return Scenes(self.images[rows], self.cells[rows])

    @property
    def objects(self) -> np.ndarray:
        """How many cells hold an object: (n,) int64, from 1 to 3."""
        return (self.cells != EMPTY).sum(1)

    def patches(self, patch_size: int) -> np.ndarray:
        """What each square patch shows, (n, N) int64 in raster order: the kind of the object that reaches in, or 0.

        A patch shows an object where a pixel differs from grey by an eighth of the full range. Raises ``ValueError``
        for a patch size that does not divide a cell, because then a patch could show two objects.
        """
        if patch_size < 1 or CELL % patch_size:
            raise ValueError(f"patch_size: expected a divisor of {CELL}, got {patch_size}")
        n, side, per_cell = len(self), SIZE // patch_size, CELL // patch_size
        colour = self.images.astype(np.int16) - round(GREY * 255)
        seen = (abs(colour) > _SEEN * 255).reshape(n, side, patch_size, side, patch_size * 3).any((2, 4))
        kinds = self.cells.reshape(n, GRID, GRID).repeat(per_cell, axis=1).repeat(per_cell, axis=2)
        return np.where(seen, kinds, EMPTY).reshape(n, side * side)

    @property
    def captions(self) -> list[str]:
        """One true sentence for every scene."""
        return [caption(row) for row in self.cells.tolist()]


class ShapesWorld:
    """All scenes of one ``seed`` and ``split`` ("train" or "test"; the two share no scene's random words).

    Raises ``ValueError`` for an unknown split or a seed outside [0, 2**63), ``TypeError`` for one that is not whole.
    """

    def __init__(self, seed: int = 0, split: str = "train") -> None:
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        self.seed = whole_number("seed", seed)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: expected a number in [0, 2**63), got {seed}")
        self.split = split

    def scenes(self, count: int, start: int = 0, *, cells: np.ndarray | None = None) -> Scenes:
        """Scenes ``start`` to ``start + count - 1``.

        cells: (count, 4), what is to stand there instead, at the same places within the cells, of the same sizes and
        with the same noise. Raises ``ValueError`` for a negative number and cells of another shape or out of range.
        """
        if count < 0 or start < 0:
            raise ValueError(f"count and start: expected no negative number, got {count} and {start}")
        if cells is not None:
            cells = np.asarray(cells, dtype=np.int64)
            if cells.shape != (count, CELLS) or ((cells < 0) | (cells >= NUM_CLASSES)).any():
                raise ValueError(f"cells: expected shape ({count}, {CELLS}) and numbers from 0 to {NUM_CLASSES - 1}")
        images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
        shown = np.empty((count, CELLS), dtype=np.int64)
        for begin in range(0, count, _CHUNK):
            rows = slice(begin, min(begin + _CHUNK, count))
            instead = None if cells is None else cells[rows]
            images[rows], shown[rows] = self._draw(start + begin, rows.stop - begin, instead)
        return Scenes(images, shown)

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Scenes]:
        """Consecutive batches without end, from scene ``start`` on."""
        while True:
            yield self.scenes(batch_size, start)
            start += batch_size

    def uniform(self, use: int, each: int, count: int, start: int = 0) -> np.ndarray:
        """Random numbers for scenes ``start`` to ``start + count - 1``: (count, each) float64 in [0, 1).

        use: ``QUESTIONS`` or ``EDITS``. each: numbers for a scene, a multiple of 4.
        """
        return _uniform(self._words(use, each, count, start))

    def _words(self, use: int, each: int, count: int, start: int) -> np.ndarray:
        assert each % _WORDS_PER_COUNTER == 0
        key = use * len(SPLITS) + SPLITS.index(self.split)
        stream = np.random.Philox(key=np.array([self.seed, key], dtype=np.uint64))
        stream.advance(start * (each // _WORDS_PER_COUNTER))
        return stream.random_raw(count * each).reshape(count, each)

    def _draw(self, start: int, count: int, instead: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        words = self._words(SCENES, _WORDS, count, start)
        uniform = _uniform(words[:, _NOISE_WORDS:])
        places, details = uniform[:, :4], uniform[:, 4:].reshape(count, CELLS, 4)
        # The order of four uniform numbers is a uniform permutation, and independent of every symmetric function of
        # them, such as their sum modulo 1, which is uniform as well: one more number, for the count of objects.
        objects = 1 + np.floor(places.sum(1) % 1.0 * MAX_OBJECTS).astype(np.int64)
        rank = places.argsort(1, kind="stable").argsort(1, kind="stable")
        kinds = 1 + np.floor(details[:, :, 0] * (NUM_CLASSES - 1)).astype(np.int64)
        cells = np.where(rank < objects[:, None], kinds, EMPTY) if instead is None else instead

        radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * details[:, :, 3]
        slack = CELL / 2 - 1 - radius  # the soft edge ends within the cell too
        centre = CELL / 2 + slack[:, :, None] * (2 * details[:, :, 1:3] - 1)
        images = render(cells, centre.astype(np.float32), radius.astype(np.float32))
        noise = np.ascontiguousarray(words[:, :_NOISE_WORDS]).astype("<u8", copy=False).view(np.uint8)
        images += _DECODE_NOISE[noise].reshape(images.shape)
        return np.rint(images.clip(0, 1) * 255).astype(np.uint8), cells


def _uniform(words: np.ndarray) -> np.ndarray:
    """uint64 -> float64 in [0, 1), by the upper 53 bits."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def render(cells: np.ndarray, centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Scenes without noise: float32 (n, 32, 32, 3) in [0, 1].

    ``cells`` (n, 4) as in ``Scenes``; ``centre`` (n, 4, 2) = (x, y) within the cell and ``radius`` (n, 4), in pixels.
    Edges are softened over one pixel by the signed distance to the outline.
    """
    pixel = np.arange(CELL, dtype=np.float32) + np.float32(0.5)
    x = pixel[None, None, None, :] - centre[:, :, 0, None, None]
    y = pixel[None, None, :, None] - centre[:, :, 1, None, None]
    r = radius[:, :, None, None]
    kind = np.maximum(cells - 1, 0)
    shape = (kind // len(COLOURS))[:, :, None, None]
    half = np.float32(0.9) * r  # the square, the circle and the triangle have roughly the same size for one radius
    circle = np.sqrt(x * x + y * y) - r
    square = np.maximum(abs(x), abs(y)) - half
    # The apex at (0, 1 - r), so that its soft tip stays within r; two slanted edges and the bottom one at y = half.
    triangle = np.maximum((2 * abs(x) - (y + r - 1)) / np.float32(5**0.5), y - half)
    distance = np.where(shape == 0, circle, np.where(shape == 1, square, triangle))
    cover = np.clip(np.float32(0.5) - distance, 0, 1) * (cells != EMPTY)[:, :, None, None]
    colour = RGB[kind % len(COLOURS)][:, :, None, None, :]
    drawn = GREY + cover[..., None] * (colour - np.float32(GREY))
    grid = drawn.reshape(len(cells), GRID, GRID, CELL, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(len(cells), SIZE, SIZE, 3)


def name(kind: int) -> str:
    """The words for what a cell holds: "red circle", or "nothing"."""
    if not 0 <= kind < NUM_CLASSES:
        raise ValueError(f"kind: expected a number in [0, {NUM_CLASSES}), got {kind}")
    if kind == EMPTY:
        return "nothing"
    shape, colour = divmod(kind - 1, len(COLOURS))
    return f"{COLOURS[colour]} {SHAPES[shape]}"


def caption(cells: Sequence[int]) -> str:
    """Such as "a red circle top left and a blue square bottom right"; "an empty picture" where nothing is seen."""
    if len(cells) != CELLS:
        raise ValueError(f"cells: expected {CELLS} numbers, got {len(cells)}")
    parts = [f"a {name(kind)} {place}" for kind, place in zip(cells, PLACES, strict=True) if kind != EMPTY]
    return " and ".join(parts) or "an empty picture"
