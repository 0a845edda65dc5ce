"""How often the objects asked for are there, in scenes of the shapes world, and how often guessing would have them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lavit.data.record import Record
from lavit.shapes.questions import possible_scenes
from lavit.shapes.world import CELLS, EMPTY, NUM_CLASSES


@dataclass(frozen=True)
class SceneScore(Record):
    """exact: share of scenes with every cell right. recall: of the objects asked for, those found at their place with
    their shape and colour. precision: of the objects found, those asked for; 0 where none was found."""

    exact: float
    recall: float
    precision: float


@dataclass(frozen=True)
class SceneReport(Record):
    """What was found in ``scenes`` scenes, with ``right``, ``missing`` and ``extra`` objects in all, beside what
    guessing finds: ``constant``, for each figure the best scene of the world given always, and ``other``, another
    scene of the world each time."""

    scenes: int
    score: SceneScore
    right: int
    missing: int
    extra: int
    constant: SceneScore
    other: SceneScore


def score_scenes(found: np.ndarray, asked: np.ndarray) -> SceneReport:
    """found and asked: cells (n, 4) -> the report. Raises ValueError for other or different shapes and an empty set."""
    found, asked = np.asarray(found), np.asarray(asked)
    if asked.ndim != 2 or asked.shape[1] != CELLS or len(asked) == 0:
        raise ValueError(f"asked: expected shape (n, {CELLS}) with n >= 1, got {asked.shape}")
    if found.shape != asked.shape:
        raise ValueError(f"found: expected the shape {asked.shape} of what was asked for, got {found.shape}")
    right = int(((found == asked) & (asked != EMPTY)).sum())
    wanted, seen = int((asked != EMPTY).sum()), int((found != EMPTY).sum())
    if wanted == 0:
        raise ValueError(f"asked: expected an object in one of the {len(asked)} scenes, got none")
    score = SceneScore(float((found == asked).all(1).mean()), right / wanted, right / seen if seen else 0.0)
    return SceneReport(len(asked), score, right, wanted - right, seen - right, *scene_chance())


@lru_cache(maxsize=1)
def scene_chance() -> tuple[SceneScore, SceneScore]:
    """What guessing scores, computed from all scenes that the world can show and their probabilities.

    Returns (constant, other) as in ``SceneReport``.
    """
    cells, share = possible_scenes()
    # How often each cell holds each kind: by linearity all that the expected number of right objects depends on.
    holds = np.stack([np.bincount(cells[:, place], share, minlength=NUM_CLASSES) for place in range(CELLS)])
    filled = cells != EMPTY
    objects = filled.sum(1)
    wanted = float(share @ objects)
    right = (holds[np.arange(CELLS), cells] * filled).sum(1)  # expected of each scene, given always
    constant = SceneScore(float(share.max()), float(right.max() / wanted), float((right / objects).max()))
    both = float(share @ right) / wanted  # as many objects are found as are asked for
    return constant, SceneScore(float(share @ share), both, both)
