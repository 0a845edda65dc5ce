"""Questions about the shapes world, true by construction, what guessing is worth, and captions read back.

Of every scene four questions are asked, one of each kind:

- count: "how many objects are there?"
- colour, shape: "what colour is the object top left?", of a place that holds one;
- exists: "is there a red circle?", with as many "yes" as "no". Half of the "no" are near misses: something there has
  the shape or the colour asked for. From the words of a question alone every answer of its kind is equally likely.

What is asked of scene ``i`` depends on the world's seed and split, on ``i``, and on what the scene holds; on nothing
else.
The prompt for an image of a scene is its caption (``Scenes.captions``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from math import comb

import numpy as np

from lavit.data.record import Record
from lavit.data.sequences import PROMPT
from lavit.shapes.world import (
    CELLS,
    COLOURS,
    EMPTY,
    MAX_OBJECTS,
    NUM_CLASSES,
    PLACES,
    QUESTIONS,
    SHAPES,
    ShapesWorld,
    caption,
    name,
)

KINDS = ("count", "colour", "shape", "exists")
ANSWERS = {
    "count": tuple(str(n) for n in range(1, MAX_OBJECTS + 1)),
    "colour": COLOURS,
    "shape": SHAPES,
    "exists": ("no", "yes"),
}
"""The answers of each kind."""

_YES = 0.5  # the share of "yes"
_NEAR = 0.5  # of the "no", how many are near misses
_NUMBERS = 8  # for a scene


@dataclass(frozen=True)
class Question(Record):
    """One of ``KINDS``, the words asked, and the true answer, one of ``ANSWERS[kind]``."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Chance(Record):
    """What answers to one kind of question score that look at nothing: the best ``answer`` given always, and answers
    drawn uniformly."""

    answer: str
    constant: float
    uniform: float


def questions(world: ShapesWorld, cells: np.ndarray, start: int = 0) -> list[tuple[Question, ...]]:
    """Four questions, in the order of ``KINDS``, of each of the world's scenes ``start`` to ``start + n - 1``.

    cells: (n, 4) of these scenes. Raises ValueError for a negative start, cells of another shape, and a scene in which
    there is nothing to ask for.
    """
    if start < 0:
        raise ValueError(f"start: expected no negative number, got {start}")
    cells = np.asarray(cells)
    if cells.ndim != 2 or cells.shape[1] != CELLS:
        raise ValueError(f"cells: expected shape (n, {CELLS}), got {tuple(cells.shape)}")
    empty = np.flatnonzero((cells == EMPTY).all(1))
    if len(empty):
        raise ValueError(f"cells: expected an object in every scene, got none in scene {start + int(empty[0])}")
    numbers = world.uniform(QUESTIONS, _NUMBERS, len(cells), start)
    return [_ask(row, u) for row, u in zip(cells.tolist(), numbers.tolist(), strict=True)]


def _ask(cells: list[int], uniform: list[float]) -> tuple[Question, ...]:
    filled = [place for place, kind in enumerate(cells) if kind != EMPTY]
    there = [cells[place] for place in filled]
    of_colour, of_shape = (filled[int(u * len(filled))] for u in uniform[:2])
    yes = uniform[2] < _YES
    kinds = there if yes else _absent(there, near=uniform[3] < _NEAR)
    return (
        Question("count", "how many objects are there?", str(len(filled))),
        Question("colour", f"what colour is the object {PLACES[of_colour]}?", _colour(cells[of_colour])),
        Question("shape", f"what shape is the object {PLACES[of_shape]}?", _shape(cells[of_shape])),
        Question("exists", f"is there a {name(kinds[int(uniform[4] * len(kinds))])}?", "yes" if yes else "no"),
    )


def _absent(there: list[int], near: bool) -> list[int]:
    """Kinds that are not there; near: only those that share their shape or colour with something that is."""
    shapes, colours = set(map(_shape, there)), set(map(_colour, there))
    absent = [kind for kind in range(1, NUM_CLASSES) if kind not in there]
    return [kind for kind in absent if _shape(kind) in shapes or _colour(kind) in colours] if near else absent


def _shape(kind: int) -> str:
    return SHAPES[(kind - 1) // len(COLOURS)]


def _colour(kind: int) -> str:
    return COLOURS[(kind - 1) % len(COLOURS)]


@lru_cache(maxsize=1)
def possible_scenes() -> tuple[np.ndarray, np.ndarray]:
    """Every scene that a world can show, cells (m, 4) int64, and how probable each is, (m,) float64.

    The law that ``ShapesWorld`` draws from: a uniform count, uniform places, uniform kinds.
    """
    cells, share = [], []
    for count in range(1, MAX_OBJECTS + 1):
        each = 1 / MAX_OBJECTS / comb(CELLS, count) / (NUM_CLASSES - 1) ** count
        for places in combinations(range(CELLS), count):
            for kinds in product(range(1, NUM_CLASSES), repeat=count):
                row = [EMPTY] * CELLS
                for place, kind in zip(places, kinds, strict=True):
                    row[place] = kind
                cells.append(row)
                share.append(each)
    table = np.array(cells, dtype=np.int64), np.array(share)
    for array in table:
        array.setflags(write=False)  # it is shared by all callers
    return table


@lru_cache(maxsize=1)
def _answer_shares() -> dict[str, dict[str, float]]:
    """How often each answer is the true one, by kind, from the law of the world."""
    cells, share = possible_scenes()
    objects = (cells != EMPTY).sum(1)
    each = (share / objects)[:, None].repeat(CELLS, axis=1)[cells != EMPTY]  # a place is chosen uniformly
    seen = cells[cells != EMPTY] - 1
    count = np.bincount(objects - 1, share, minlength=MAX_OBJECTS)
    shape = np.bincount(seen // len(COLOURS), each, minlength=len(SHAPES))
    colour = np.bincount(seen % len(COLOURS), each, minlength=len(COLOURS))
    found = {"count": count, "colour": colour, "shape": shape, "exists": np.array([1 - _YES, _YES])}
    # Without the last digits of sums of thousands: what is equal by the law is equal here.
    return {kind: dict(zip(ANSWERS[kind], found[kind].round(12).tolist(), strict=True)) for kind in KINDS}


def chance() -> dict[str, Chance]:
    """For each kind, what answers score that look at nothing, from the law of the world."""
    chances = {}
    for kind, shares in _answer_shares().items():
        best = max(shares, key=lambda answer: shares[answer])
        chances[kind] = Chance(best, shares[best], 1 / len(shares))
    return chances


def read_caption(text: str) -> list[int] | None:
    """The cells that `lavit.shapes.world.caption` would have described by exactly these words, or None."""
    cells = [EMPTY] * CELLS
    for part in text.split(" and "):
        place, kind = _PHRASES.get(part, (None, EMPTY))
        if place is not None:
            cells[place] = kind
    return cells if caption(cells) == text else None


_PHRASES: dict[str, tuple[int | None, int]] = {
    f"a {name(kind)} {place}": (index, kind) for index, place in enumerate(PLACES) for kind in range(1, NUM_CLASSES)
}


def sentences() -> list[str]:
    """Texts with every word that the world's captions, questions and answers use, to train a tokenizer on.

    Captions of up to two objects, and every question with every answer of its kind, "Question: {} Answer: {}" as the
    release asks; in a fixed order.
    """
    cells, _ = possible_scenes()
    few: Sequence[list[int]] = cells[(cells != EMPTY).sum(1) <= 2].tolist()
    asked = {
        "count": ["how many objects are there?"],
        "colour": [f"what colour is the object {place}?" for place in PLACES],
        "shape": [f"what shape is the object {place}?" for place in PLACES],
        "exists": [f"is there a {name(kind)}?" for kind in range(1, NUM_CLASSES)],
    }
    pairs = [(text, answer) for kind in KINDS for text in asked[kind] for answer in ANSWERS[kind]]
    return [*map(caption, few), *(f"{PROMPT.format(text)} {answer}" for text, answer in pairs)]
