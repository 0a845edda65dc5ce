"""The page of a model and a folder: what it does with the pictures, how well, and which are the worst and the best."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lavit.data.atomic_write import atomic_write
from lavit.data.images import load_image
from lavit.evaluation.examination import Examination
from lavit.evaluation.folder_pictures import FolderDrawn
from lavit.evaluation.folder_tokens import Seen
from lavit.evaluation.folder_words import Answered
from lavit.evaluation.picture_content import rank_correlation
from lavit.report.extremes import EXTREMES, extremes_of
from lavit.report.html import environment
from lavit.report.result import Rate, mean_of
from lavit.report.token_map import draw_token_map, shrink
from lavit.report.training_runs import TrainingRun, curves_of, spans_of

SIDE, MAP = 384, 512
"""The longest side of a picture on the page, and of one that a token map is drawn from, in pixels."""
SMALL = 128
"""Pictures up to this side are shown with their pixels visible, and without losses."""


@dataclass(frozen=True)
class About:
    """What the page was made by. command: the words of the command. settings, versions: name -> value. kernels: the
    choices of `lavit.kernels.dispatch.table`. parameters: part of the model -> number."""

    command: str
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    kernels: Sequence[Any] = ()
    parameters: Mapping[str, int] = field(default_factory=dict)


def write_folder_report(
    found: Examination,
    runs: Sequence[TrainingRun],
    about: About,
    path: str | os.PathLike[str],
    *,
    shown: int = 12,
    extremes: int = EXTREMES,
) -> None:
    """Write the page to ``path``: one HTML file with everything in it. See `render_folder_report`."""
    page = render_folder_report(found, runs, about, shown=shown, extremes=extremes)
    with atomic_write(path, "w") as file:
        file.write(page)


def render_folder_report(
    found: Examination,
    runs: Sequence[TrainingRun],
    about: About,
    *,
    shown: int = 12,
    extremes: int = EXTREMES,
) -> str:
    """The page as text. shown: at most so many items of each kind, drawn by chance from all; extremes: of the worst and
    of the best of each kind. What is missing becomes a sentence that says why."""
    seen, grid = found.tokens.seen, found.tokens.grid

    def seen_of(path: Path) -> Image.Image:
        return shrink(found.view(load_image(path)), MAP)

    return environment().get_template("folder.html.j2").render(
        found=found,
        about=about,
        seen=seen,
        patches=grid[0] * grid[1],
        rates=_rates(found),
        sample=_spread(seen, shown),
        said=_some(found.captions.said, shown) if found.captions else [],
        asked=_by_picture(found.answers.answered, shown) if found.answers else [],
        rebuilt=_some(found.rebuilt, shown) if found.rebuilt else [],
        drawn=_some(found.drawn.drawn, shown) if found.drawn else [],
        changed=_some(found.changed.drawn, shown) if found.changed else [],
        extremes=extremes_of(found, extremes),
        content=_content(seen),
        learning=[(run, spans_of(run), curves_of(run)) for run in runs],
        means={name: mean_of([getattr(one, name) for one in seen]) for name in ("tokens", "cosine", "other")},
        shot=shot,
        map_of=lambda one: draw_token_map(seen_of(one.path), one.keep, grid),
        seen_of=seen_of,
        drop=found.missing.get,
    )  # fmt: skip


def shot(picture: str | os.PathLike[str] | Image.Image, side: int = SIDE) -> tuple[Image.Image, str, bool]:
    """A picture or its file as it is shown: no larger than ``side``; the class of its element; whether it is a
    photograph."""
    picture = shrink(picture if isinstance(picture, Image.Image) else load_image(picture), side)
    small = max(picture.size) <= SMALL
    return picture, "pixels" if small else "", not small


def _spread(seen: Sequence[Seen], most: int) -> list[Seen]:
    """At most ``most``, from the fewest to the most tokens, evenly over that order."""
    ordered = sorted(seen, key=lambda one: one.tokens)
    places = np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def _some(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` in their order, by chance, but the same ones of the same number of items: not the best."""
    places = sorted(random.Random(0).sample(range(len(items)), min(most, len(items))))
    return [items[place] for place in places]


def _by_picture(answered: Sequence[Answered], most: int) -> list[tuple[Path, list[Answered]]]:
    """Of some pictures the first four questions about each."""
    own: dict[Path, list[Answered]] = {}
    for one in answered:
        own.setdefault(one.path, []).append(one)
    return [(path, own[path][:4]) for path in _some(list(own), most)]


def _rates(found: Examination) -> list[tuple[str, Rate]]:
    """Shares of right ones beside what guessing has."""
    rows = []
    if found.captions:
        rows.append(("Captions word for word right", Rate(found.captions.exact, found.captions.guessed_exact)))
        rows.append(("Captions: F1 of the words", Rate(found.captions.f1, found.captions.guessed_f1)))
    if found.answers:
        rows.append(("Answers right", Rate(found.answers.accuracy, found.answers.constant)))
        for kind, (accuracy, constant, _) in found.answers.kinds.items():
            rows.append((f"Answers: {kind or 'of no kind'}", Rate(accuracy, constant)))
    for name, part in (("Drawn for captions", found.drawn), ("Changed as asked", found.changed)):
        if part:
            rows += [(f"{name}: {told}", rate) for told, rate in _found(part)]
    if found.changed:
        rows.append(("Changed as asked: nearer to what is wanted", Rate(nearer(found.changed), 0.5)))
    return rows


def _found(part: FolderDrawn) -> list[tuple[str, Rate]]:
    among = [("nearest", 1)]
    if part.among > 1:
        among.append((f"among {part.among} nearest", part.among))
    return [(f"{told} of {part.gallery}", Rate(part.found(most), part.chance(most))) for told, most in among]


def nearer(part: FolderDrawn) -> float:
    """Share of changed pictures that are nearer to the one wanted than to the one shown."""
    own = [one.cosine > one.before for one in part.drawn if one.before is not None]
    return sum(own) / len(own) if own else float("nan")


def _content(seen: Sequence[Seen]) -> dict[str, Any]:
    tokens = [float(one.tokens) for one in seen]
    edges, sizes = [100 * one.edges for one in seen], [float(one.bytes) for one in seen]
    return {
        "tokens": tokens,
        "edges": edges,
        "bytes": sizes,
        "of_edges": rank_correlation(edges, tokens),
        "of_bytes": rank_correlation(sizes, tokens),
        "constant": len(set(tokens)) < 2,
    }


