"""Scenes of the shapes world with one thing changed, and the words that ask for it: [image, text, image] samples.

Of scene ``i`` one cell is filled, emptied, or given another object; all else stays, the jitter and the noise too. Which
cell and how depends on the world's seed and split, on ``i``, and on what the scene holds; on nothing else. Read
backwards a change is one as well, so every pair of images gives two samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lavit.data.sequences import EDIT, ListedSource, Sequencing
from lavit.shapes.world import CELLS, EDITS, EMPTY, MAX_OBJECTS, NUM_CLASSES, PLACES, Scenes, ShapesWorld, name

_NUMBERS = 4  # for a scene
_REMOVED = 0.5  # of the objects that are changed, how many go where others stay


@dataclass(frozen=True)
class Edits:
    """Pairs of scenes that differ in one cell. before, after: as many scenes, in the same order."""

    before: Scenes
    after: Scenes

    def __len__(self) -> int:
        return len(self.before)

    @property
    def texts(self) -> list[str]:
        """What turns each ``before`` into its ``after``."""
        return _texts(self.before, self.after)

    @property
    def wordless(self) -> tuple[np.ndarray, np.ndarray]:
        """What can be guessed from ``before`` without the words, cells (n, 4) each: that nothing changes, of which most
        cells are right, and what is likeliest, of which most scenes are: of several objects the first goes."""
        cells = self.before.cells
        return cells, np.array([_likeliest(row) for row in cells.tolist()], dtype=np.int64).reshape(-1, CELLS)

    @property
    def undoing(self) -> list[str]:
        """What turns each ``after`` into its ``before``."""
        return _texts(self.after, self.before)


def edits(world: ShapesWorld, count: int, start: int = 0, *, scenes: Scenes | None = None) -> Edits:
    """One change of each of the world's scenes ``start`` to ``start + count - 1``.

    scenes: these, where they are drawn already. Raises ValueError for a negative number, and for another number of
    scenes.
    """
    if scenes is None:
        scenes = world.scenes(count, start)
    if len(scenes) != count:
        raise ValueError(f"scenes: expected {count}, got {len(scenes)}")
    numbers = world.uniform(EDITS, _NUMBERS, count, start)
    cells = [_change(row, u) for row, u in zip(scenes.cells.tolist(), numbers.tolist(), strict=True)]
    changed = np.array(cells, dtype=np.int64).reshape(-1, CELLS)
    return Edits(scenes, world.scenes(count, start, cells=changed))


def _change(cells: list[int], uniform: list[float]) -> list[int]:
    filled = [place for place, kind in enumerate(cells) if kind != EMPTY]
    places = filled if len(filled) == MAX_OBJECTS else range(CELLS)
    place = places[int(uniform[0] * len(places))]
    kinds = [kind for kind in range(1, NUM_CLASSES) if kind != cells[place]]
    goes = place in filled and len(filled) > 1 and uniform[1] < _REMOVED
    kind = EMPTY if goes else kinds[int(uniform[2] * len(kinds))]
    return [*cells[:place], kind, *cells[place + 1 :]]


def _likeliest(cells: list[int]) -> list[int]:
    """An object that is alone becomes another: no change of it is likelier than that."""
    filled = [place for place, kind in enumerate(cells) if kind != EMPTY]
    place = filled[0]
    kind = EMPTY if len(filled) > 1 else cells[place] % (NUM_CLASSES - 1) + 1
    return [*cells[:place], kind, *cells[place + 1 :]]


def instruction(before: Sequence[int], after: Sequence[int]) -> str:
    """Such as "put a red circle top left", also where something else is; "take away the red circle top left".

    before, after: cells (4,). Raises ValueError unless they differ in one.
    """
    changed = [place for place, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    if len(changed) != 1:
        raise ValueError(f"after: expected one cell other than before, got {len(changed)}")
    place = changed[0]
    if after[place] == EMPTY:
        return f"take away the {name(before[place])} {PLACES[place]}"
    return f"put a {name(after[place])} {PLACES[place]}"


def instructions() -> list[str]:
    """Every text that asks for a change, in a fixed order."""
    objects = [(name(kind), place) for place in PLACES for kind in range(1, NUM_CLASSES)]
    return [text for what, place in objects for text in (f"put a {what} {place}", f"take away the {what} {place}")]


def _texts(before: Scenes, after: Scenes) -> list[str]:
    return [instruction(a, b) for a, b in zip(before.cells.tolist(), after.cells.tolist(), strict=True)]


def edits_source(pairs: Edits, first: int, sequencing: Sequencing) -> ListedSource:
    """Two samples of each pair. Image i is scene i, image ``first + i`` what it was changed to."""
    entries = []
    for scene, (text, undoing) in enumerate(zip(pairs.texts, pairs.undoing, strict=True)):
        entries += [(scene, text, first + scene), (first + scene, undoing, scene)]
    return ListedSource(EDIT, entries, sequencing)
