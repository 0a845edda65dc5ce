"""The worst and the best items of each kind of an examination, for the page to show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavit.evaluation.examination import Examination
from lavit.report.format import decimal
from lavit.report.sheet import extremes

EXTREMES = 6


@dataclass(frozen=True)
class Item:
    """pictures: files, and what each is. score: more is better; told: how it is said. words: (name, text, text that it
    is compared with or None)."""

    pictures: list[tuple[str, Path]]
    score: float
    told: str
    words: list[tuple[str, str, str | None]]


@dataclass(frozen=True)
class Extremes:
    """title, note: of the kind. worst: the worst first; best: the best first. wrong: how many of all are not right,
    None where nothing is right or wrong."""

    title: str
    note: str
    worst: list[Item]
    best: list[Item]
    wrong: int | None = None
    total: int = 0


def extremes_of(found: Examination, count: int) -> list[Extremes]:
    """Of each kind that there is. Where all are right or all are wrong, these are the worst or the best."""
    kinds = [
        ("Features rebuilt from the tokens", "By the cosine.", _tokens(found), None),
        ("Pictures rebuilt", "By the PSNR: the picture, and what is drawn from its tokens.", _rebuilt(found), None),
        ("Captions", "By F1, the words that they share with the true one.", _captions(found), 1.0),
        ("Answers", "By the accuracy.", _answers(found), 1.0),
        ("Pictures drawn for captions", "By the cosine with the true picture.", _drawn(found.drawn), None),
        ("Pictures changed", "By the cosine with the picture wanted.", _drawn(found.changed), None),
    ]
    shown = []
    for title, note, items, right in kinds:
        items = [item for item in items if item.score == item.score]
        if not items:
            continue
        worst, best = extremes(items, count)
        wrong = None
        if right is not None:
            wrong = sum(item.score < right for item in items)
            worst = [item for item in worst if item.score < right]
            best = [item for item in best if item.score > 0]
        shown.append(Extremes(title, note, worst, best, wrong, len(items)))
    return shown


def _tokens(found: Examination) -> list[Item]:
    return [
        Item([("", one.path)], one.cosine, f"cosine {decimal(one.cosine)}", [("", f"{one.tokens} tokens", None)])
        for one in found.tokens.seen
    ]


def _rebuilt(found: Examination) -> list[Item]:
    return [
        Item(
            [("picture", one.path), ("from tokens", one.drawn)],
            one.psnr,
            f"{decimal(one.psnr, 1)} dB",
            [("", f"SSIM {decimal(one.ssim)}, {one.tokens} tokens", None)],
        )
        for one in found.rebuilt or ()
    ]


def _captions(found: Examination) -> list[Item]:
    return [
        Item(
            [("", one.path)],
            1.0 if one.exact else min(one.f1, 0.999),  # the same words in another order
            "word for word" if one.exact else f"F1 {decimal(one.f1, 2)}",
            [("true", one.nearest, one.said), ("says", one.said, one.nearest)],
        )
        for one in (found.captions.said if found.captions else ())
    ]


def _answers(found: Examination) -> list[Item]:
    return [
        Item(
            [("", one.path)],
            one.accuracy,
            f"accuracy {decimal(one.accuracy, 2)}",
            [("asked", one.question, None), ("true", one.usual, None), ("says", one.said or "–", None)],
        )
        for one in (found.answers.answered if found.answers else ())
    ]


def _drawn(part: Any) -> list[Item]:
    items = []
    for one in part.drawn if part else ():
        shown = [("before", one.asked.shown)] if one.asked.shown is not None else []
        drawn = [("drawn", one.picture)] if one.picture is not None else []
        told = f"cosine {decimal(one.cosine)}, place {one.rank + 1} of {part.gallery}"
        items.append(Item([*shown, *drawn, ("true", one.asked.true)], one.cosine, told, [("", one.asked.words, None)]))
    return items


