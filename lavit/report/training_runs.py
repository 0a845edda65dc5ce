"""Training runs as they lie in their folders: rows of metrics and settings, and the curves of a run."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lavit.report import plots
from lavit.report.page import CURVES
from lavit.report.result import phases
from lavit.training.engine.metrics import read_rows

METRICS, SETTINGS = "metrics.jsonl", "training.yaml"
HELD_OUT = "val_"
"""So the names begin of what is measured on held-out pictures."""
OTHER, LOSS = "Training", "loss"
# A setting that the recipe of one stage alone has.
_OF_STAGE = (
    ("seen", "Encoder"),
    ("encoder_steps", "Tokenizer"),
    ("text_vocabulary", "Language model"),
    ("unet", "U-Net"),
)
_NO_CURVES = frozenset(("step", "steps", "phase", "skipped", "eta_seconds", "seconds", "lr", "grad_norm"))


@dataclass(frozen=True)
class TrainingRun:
    """folder: of the run. network: which it trains, one of `page.CURVES`, or "Training". rows: of its metrics, in their
    order. settings: of its training.yaml, none where there is none."""

    folder: str
    network: str
    rows: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """title and note: in words. chart: SVG. last, held_out: the last value, of training and of held-out pictures. best:
    the lowest held-out loss and its step; None of other numbers."""

    title: str
    note: str
    chart: str
    last: float | None
    held_out: float | None
    best: tuple[float, float] | None = None


def is_run(folder: str | os.PathLike[str]) -> bool:
    return (Path(folder) / METRICS).is_file()


def read_run(folder: str | os.PathLike[str]) -> TrainingRun:
    """The run of a folder. ValueError where it has no metrics, or a file that is damaged."""
    if not is_run(folder):
        raise ValueError(f"{os.fspath(folder)} holds no training run (it has no {METRICS})")
    rows = [row for row in read_rows(Path(folder) / METRICS) if isinstance(row, dict) and _number(row.get("step"))]
    settings: Any = {}
    if (path := Path(folder) / SETTINGS).is_file():
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged or no YAML ({' '.join(str(error).split())})") from None
    settings = settings if isinstance(settings, dict) else {}
    network = next((name for key, name in _OF_STAGE if key in settings), OTHER)
    return TrainingRun(os.fspath(folder), network, rows, settings)


def spans_of(run: TrainingRun) -> list[tuple[str, float, float]]:
    """Name, first and last step of each phase; rows of held-out pictures are of none."""
    return phases([row for row in run.rows if row.get("phase")])


def curves_of(run: TrainingRun) -> list[Curve]:
    """A curve of each number that the run wrote down, those that are known first; what was measured on held-out
    pictures stands on the axes of the same number in training, where there is one, else on its own."""
    known = {key: (title, unit, note) for key, title, unit, note in CURVES.get(run.network, [])}
    written = list(dict.fromkeys(key for row in run.rows for key in row if _number(row[key])))
    names = dict.fromkeys([*known, *(key.removeprefix(HELD_OUT) for key in written)])
    spans = [(start, end) for _, start, end in spans_of(run)]
    found = []
    for key in names:
        if key in _NO_CURVES:
            continue
        (steps, values), (held_steps, held) = _series(run.rows, key), _series(run.rows, HELD_OUT + key)
        title, unit, note = known.get(key, (key.replace("_", " ").capitalize(), key.replace("_", " "), ""))
        last, own = (series[-1] if series else None for series in (values, held))
        floor = 0.0 if min([*values, *held], default=0) >= 0 else math.nan
        words = f"{run.network}: {title}, {run.folder}"
        if steps:
            chart = plots.line(words, steps, values, "step", unit, spans, floor, (held_steps, held))
        else:
            chart = plots.line(words, held_steps, held, "step", unit, spans, floor) if held else None
            note = " ".join([note, "On held-out pictures."]).strip()
        if chart:
            best = min(zip(held, held_steps, strict=True), default=None) if key == LOSS else None
            found.append(Curve(title, note, chart, last, own, best))
    return found


def _series(rows: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    pairs = [(float(row["step"]), float(row[key])) for row in rows if _number(row.get(key))]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
