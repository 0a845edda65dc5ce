"""How right pictures and captions of the emoji world are, each figure beside what guessing scores.

Of pictures: the background and the main colour, read from the pixels; how near they are to the right ones, pixel by
pixel; and in given features, how many other pictures are nearer than the right one. Of captions: each part, word by
word. Nothing here learns, and nothing needs the font.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from examples.emoji.colours import BACKGROUNDS, VISIBLE, MainColour, distance, main_colour, nearest_background
from examples.emoji.people import NO_TONE, TONES
from lavit.data.record import Record
from lavit.evaluation.perceptual import psnr

CORNER = 1 / 16
"""Of a picture's side, the squares in its corners that tell the background."""


def backgrounds(images: Any) -> list[str]:
    """The background of each picture: the name nearest to the median of its corners' pixels.

    images: (n, side, side, 3) uint8. Raises ValueError for others.
    """
    return [nearest_background(colour) for colour in _corner_colours(pixels(images))]


def main_colours(images: Any) -> list[MainColour | None]:
    """Of each picture, the main colour of what stands out from its background; None where nothing does."""
    images = pixels(images)
    found = []
    for image, colour in zip(images, _corner_colours(images), strict=True):
        flat = image.reshape(-1, 3)
        found.append(main_colour(flat[distance(flat, colour) > VISIBLE]))
    return found


def pixels(images: Any) -> np.ndarray:
    """(n, side, side, 3) uint8 of an array or a list of RGB pictures (PIL). Raises ValueError for others."""
    if isinstance(images, Sequence):
        images = [np.asarray(image) for image in images]
        if len({image.shape for image in images}) != 1:
            raise ValueError(f"images: expected one or more of one size, got {sorted({i.shape for i in images})}")
        images = np.stack(images)
    found = np.asarray(images)
    if found.ndim != 4 or found.shape[1] != found.shape[2] or found.shape[3] != 3 or found.dtype != np.uint8:
        raise ValueError(f"images: expected (n, side, side, 3) of uint8, got {tuple(found.shape)} of {found.dtype}")
    return found


def _corner_colours(images: np.ndarray) -> np.ndarray:
    """The median colour of the four corners: (n, 3)."""
    edge = max(1, round(images.shape[1] * CORNER))
    rows = np.concatenate([images[:, :edge], images[:, -edge:]], 1)
    corners = np.concatenate([rows[:, :, :edge], rows[:, :, -edge:]], 2)
    return np.median(corners.reshape(len(images), -1, 3), 1)


@dataclass(frozen=True)
class Retrieval(Record):
    """Of ``pictures`` pictures, how often the right one of ``gallery`` is the nearest, and among the ten nearest.

    chance_nearest, chance_ten: of an order that is drawn at random.
    """

    pictures: int
    gallery: int
    nearest: float
    ten: float
    median_rank: float
    chance_nearest: float
    chance_ten: float


def ranks(features: np.ndarray, gallery: np.ndarray, right: Sequence[Sequence[int]]) -> np.ndarray:
    """The rank of the right picture of each, by cosine similarity: (n,) int64, 1 for the nearest.

    features: (n, D). gallery: (m, D). right: of each, the numbers of the pictures of the gallery that are right, one
    or more; the nearest of them counts. Others that are exactly as near stand before it. Raises ValueError for other
    shapes, numbers that are not finite and a number that the gallery has not.
    """
    features, gallery = np.asarray(features, np.float64), np.asarray(gallery, np.float64)
    if features.ndim != 2 or gallery.ndim != 2 or features.shape[1] != gallery.shape[1]:
        raise ValueError(f"features: expected (n, D) and a gallery (m, D), got {features.shape} and {gallery.shape}")
    if len(right) != len(features):
        raise ValueError(f"right: expected {len(features)}, one of each picture, got {len(right)}")
    if not (np.isfinite(features).all() and np.isfinite(gallery).all()):
        raise ValueError("features: expected finite numbers")
    near = _unit(features) @ _unit(gallery).T
    found = np.empty(len(features), dtype=np.int64)
    for number, (row, own) in enumerate(zip(near, right, strict=True)):
        if not own or min(own) < 0 or max(own) >= len(gallery):
            raise ValueError(f"right: expected numbers from 0 to {len(gallery) - 1} of picture {number}, got {own}")
        others = np.ones(len(gallery), dtype=bool)
        others[list(own)] = False
        found[number] = 1 + int((row[others] >= row[list(own)].max()).sum())
    return found


def retrieval(found: np.ndarray, gallery: int, right: int = 1) -> Retrieval:
    """Ranks (n,) among ``gallery`` pictures -> the rates. right: how many of these are right for each.

    Raises ValueError for no ranks.
    """
    found = np.asarray(found)
    if found.size == 0:
        raise ValueError("found: expected at least one rank")
    others = gallery - right
    ten = 1.0
    for place in range(min(10, gallery)):
        ten *= max(0, others - place) / (gallery - place)
    return Retrieval(
        pictures=len(found),
        gallery=gallery,
        nearest=float((found == 1).mean()),
        ten=float((found <= 10).mean()),
        median_rank=float(np.median(found)),
        chance_nearest=right / gallery,
        chance_ten=1 - ten,
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)


PARTS = ("name", "tone", "background")


@dataclass(frozen=True)
class Parts(Record):
    """What a caption says; "" for what it does not say. tone: "none" is not said."""

    name: str
    tone: str
    background: str


@dataclass(frozen=True)
class CaptionScores(Record):
    """exact: share of captions that are word for word right. Of each of `PARTS` the share that is right, and
    ``chance``, of the commonest answer given always. tone: of the captions that have one alone."""

    captions: int
    exact: float
    parts: dict[str, float]
    chance: dict[str, float]


_CAPTION = re.compile(
    rf"(?P<name>.*?)(?: with (?P<tone>{'|'.join(sorted(TONES, key=len, reverse=True))}) skin tone)?"
    rf"(?: on (?P<background>{'|'.join(BACKGROUNDS)}))?"
)


def parse(caption: str) -> Parts:
    """Such as "woman firefighter with medium skin tone on green" -> its parts. Never fails: what is no tone and no
    background is the name."""
    found = _CAPTION.fullmatch(" ".join(caption.lower().split()).rstrip(". "))
    assert found is not None
    return Parts(found["name"], found["tone"] or "", found["background"] or "")


def score_captions(said: Sequence[str], true: Sequence[Mapping[str, Any]]) -> CaptionScores:
    """Captions beside what world.json says of the same pictures. Raises ValueError for an empty set and another
    number."""
    if len(said) != len(true) or not true:
        raise ValueError(f"said: expected {len(true)} captions, one or more, got {len(said)}")
    shares: dict[str, float] = {}
    chance: dict[str, float] = {}
    parsed = [parse(caption) for caption in said]
    for part in PARTS:
        pairs = [(getattr(p, part), _wanted(truth, part)) for p, truth in zip(parsed, true, strict=True)]
        pairs = [(got, wanted) for got, wanted in pairs if wanted]
        if pairs:
            shares[part] = sum(got == wanted for got, wanted in pairs) / len(pairs)
            chance[part] = Counter(wanted for _, wanted in pairs).most_common(1)[0][1] / len(pairs)
    exact = sum(
        " ".join(caption.lower().split()) == truth["caption"] for caption, truth in zip(said, true, strict=True)
    )
    return CaptionScores(len(true), exact / len(true), shares, chance)


def _wanted(truth: Mapping[str, Any], part: str) -> str:
    value = truth[part]
    return "" if part == "tone" and value == NO_TONE else value


@dataclass(frozen=True)
class PictureScores(Record):
    """background, colour: share that is right, beside ``chance``, of the commonest given always. colour: of the
    ``coloured`` pictures whose main colour is clear, that have no skin tone and no low contrast. psnr: the median in
    dB; None where the right pictures are not given."""

    pictures: int
    coloured: int
    background: float
    colour: float | None
    chance_background: float
    chance_colour: float | None
    psnr: float | None


def score_pictures(images: Any, true: Sequence[Mapping[str, Any]], right: Any = None) -> PictureScores:
    """Pictures beside what world.json says of them, and beside the ``right`` ones. Raises ValueError for an empty set
    and another number."""
    images = pixels(images)
    if len(images) != len(true):
        raise ValueError(f"images: expected {len(true)}, got {len(images)}")
    seen = backgrounds(images)
    wanted = [truth["background"] for truth in true]
    rows = [number for number, truth in enumerate(true) if _coloured(truth)]
    colours = main_colours(images[rows]) if rows else []
    pairs = [(c.name if c else "", true[row]["colour"]) for c, row in zip(colours, rows, strict=True)]
    return PictureScores(
        pictures=len(images),
        coloured=len(rows),
        background=_share(zip(seen, wanted, strict=True), len(wanted)),
        colour=_share(pairs, len(pairs)) if pairs else None,
        chance_background=_commonest(wanted),
        chance_colour=_commonest([name for _, name in pairs]) if pairs else None,
        psnr=None if right is None else _median_psnr(images, pixels(right)),
    )


def _median_psnr(images: np.ndarray, right: np.ndarray) -> float:
    if images.shape != right.shape:
        raise ValueError(f"images: expected the shape {right.shape} of the right ones, got {images.shape}")
    return float(np.median([psnr(image, true) for image, true in zip(images, right, strict=True)]))


def _coloured(truth: Mapping[str, Any]) -> bool:
    return truth["colour_clear"] and not truth["low_contrast"] and not truth["tone"]


def _share(pairs: Any, count: int) -> float:
    return sum(got == wanted for got, wanted in pairs) / count


def _commonest(values: Sequence[str]) -> float:
    return Counter(values).most_common(1)[0][1] / len(values)
