"""Figures of several runs in one table: medians, by split, those of dynamic and of fixed length side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from examples.emoji.splits import SPLITS

FIGURES = "figures.json"
LENGTHS = ("dynamic", "fixed")
"""Of the tokens of a picture."""

Rows = dict[str, tuple[float | None, float | None]]
"""(figure, chance) by name; None for what is not there."""

IN_TENTHS = ("tokens", "drawn again: dB")
"""What is no share."""


def read_figures(run: Path) -> dict[str, Any]:
    """Of each split, as ``judge`` wrote them into the file, the folder, or judged/ of that of ``run``. Raises
    FileNotFoundError where it did not."""
    for place in (run, run / "judged" / FIGURES, run / FIGURES):
        if place.is_file():
            return json.loads(place.read_text(encoding="utf-8"))
    raise FileNotFoundError(f"RUN: there is no {FIGURES} in {run} and none in {run / 'judged'}")


def rows(figures: dict[str, Any]) -> Rows:
    """The rows of the table, of the figures of one split."""
    kept, again, captions, drawn = (figures[name] for name in ("tokens", "drawn again", "captions", "drawn"))
    found: Rows = {
        "cosine": (kept["cosine"], kept.get("chance_cosine")),
        "tokens": (kept["mean"], None),
        "tokens: rank correlation with edges": (kept["with_edges"], None),
        "tokens: rank correlation with JPEG bytes": (kept["with_jpeg_size"], None),
        "drawn again: dB": (again["psnr"], None),
        "drawn again: background": (again["background"], again["chance_background"]),
        "drawn again: main colour": (again["colour"], again["chance_colour"]),
        "caption: exact": (captions["exact"], None),
    }
    for part, share in captions["parts"].items():
        found[f"caption: {part}"] = (share, captions["chance"][part])
    for kind, row in figures["answers"].items():
        found[f"answer: {kind}"] = (row["right"], row["chance"])
    for kind, row in {"drawn": drawn, **{f"edit, {kind}": row for kind, row in figures["changed"].items()}}.items():
        found[f"{kind}: nearest"] = (row["nearest"], row["chance_nearest"])
        found[f"{kind}: among ten"] = (row["ten"], row["chance_ten"])
    if "all" in figures["changed"]:
        left = figures["changed"]["all"]
        found["edit, left as it is: nearest"] = (left["unchanged_nearest"], None)
        found["edit, left as it is: among ten"] = (left["unchanged_ten"], None)
    return found


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown. runs: the figures of each, by split. Raises ValueError where there are none."""
    splits = [split for split in SPLITS if any(split in run for run in runs)]
    if not splits:
        raise ValueError(f"runs: expected figures of {', '.join(SPLITS)}, got none")
    columns: list[tuple[str, list[Rows], int]] = []  # heading, what the median is of, and which number of each row
    counts: dict[str, int] = {}
    for split in splits:
        of_split = [run[split] for run in runs if split in run]
        for length in LENGTHS:
            if own := [rows(figures) for figures in of_split if figures["tokens"]["length"] == length]:
                columns.append((f"{split}, {length}", own, 0))
                counts[length] = max(counts.get(length, 0), len(own))
        columns.append(("chance", list(map(rows, of_split)), 1))
    names = list(dict.fromkeys(name for _, of, _ in columns for each in of for name in each))
    lines = [
        [f"median of {', '.join(f'{count} {length}' for length, count in counts.items())}", *(c[0] for c in columns)],
        ["---", *["---:"] * len(columns)],
        *([name, *(_cell(name, of, number) for _, of, number in columns)] for name in names),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(name: str, of: Iterable[Rows], number: int) -> str:
    values = [value for each in of if name in each and (value := each[name][number]) is not None]
    return f"{median(values):.{1 if name in IN_TENTHS else 3}f}" if values else "–"
