"""Medians over quickstarts with different seeds; lengths and numbers of threads side by side.

python -m benchmarks.seeds benchmarks/results/quickstart-*.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Run = dict[str, Any]


def figures(run: Run) -> dict[str, tuple[float, float | None]]:
    """What a run measured, each with what chance has, where that is known. Of stages that it left out nothing."""
    found: dict[str, tuple[float, float | None]] = {
        "cosine of rebuilt and true features": (run["cosine"], None),
        **{f"{row['what']} (probe)": (row["tokens"], row["chance"]) for row in run["probe"]},
        "tokens an image": (run["tokens"], None),
        **{f"tokens for {k} objects": (n, None) for k, n in run["tokens_by_objects"].items()},
    }
    if language := run.get("language"):
        captions, vqa, images = language["captions"], language["vqa"], language["images"]
        found["captions word for word right"] = captions["exact"], captions["chance"]["exact"]
        found["answers right"] = vqa["mean"], vqa["chance"]["mean"]
        for kind, right in vqa["by_kind"].items():
            found[f"answers right: {kind}"] = right, vqa["chance"][kind]
        for name, words in (("scene", "every cell right"), ("recall", "objects there")):
            found[f"tokens asked for, {words}"] = images[name], images["chance"][name]
            found[f"tokens of the true image, {words}"] = images["ceiling"][name], images["chance"][name]
        if edits := language.get("edits"):
            for name, words in (("scene", "every cell right"), ("recall", "objects there")):
                found[f"tokens of a change asked for, {words}"] = edits[name], edits["chance"][name]
    if pixels := run.get("pixels"):
        for way, rates in pixels["ways"].items():
            for name, words in (("scene", "every cell right"), ("recall", "objects there")):
                found[f"pixels from {way}, {words}"] = rates[name], rates["chance"][name]
    found["seconds"] = run["seconds"], None
    return found


def table(runs: Sequence[Run]) -> str:
    """A table in Markdown: a row for each figure, the median of the runs of each kind, and of chance."""
    measured: dict[tuple[str, int], list[dict[str, tuple[float, float | None]]]] = {}
    for run in sorted(runs, key=_kind):
        measured.setdefault(_kind(run), []).append(figures(run))
    names = list(dict.fromkeys(name for found in measured.values() for one in found for name in one))
    head = [
        f"{length}, {threads} thread{'s' * (threads > 1)}, {len(found)} seed{'s' * (len(found) > 1)}"
        for (length, threads), found in measured.items()
    ]
    lines = [f"| | {' | '.join(head)} | chance |", "|---|" + "---|" * (len(head) + 1)]
    for name in names:
        cells = [_middle([one[name] for one in found if name in one], lambda it: it[0]) for found in measured.values()]
        every = [one[name] for found in measured.values() for one in found if name in one]
        lines.append(f"| {name} | {' | '.join(cells)} | {_middle(every, lambda it: it[1])} |")
    return "\n".join(lines)


def _kind(run: Run) -> tuple[str, int]:
    return run["length"], run["threads"]


def _middle(
    entries: Sequence[tuple[float, float | None]], which: Callable[[tuple[float, float | None]], float | None]
) -> str:
    values = [value for entry in entries if (value := which(entry)) is not None]
    return f"{median(values):.3f}" if values else ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds", description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, nargs="+", help="results.json of quickstarts")
    options = parser.parse_args(argv)
    print(table([json.loads(path.read_text(encoding="utf-8")) for path in options.results]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
