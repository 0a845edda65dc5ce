"""Medians over seeds: of the right runs, and of the figures that they have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.seeds import main


def run(cosine: float, length: str = "dynamic", captions: float | None = None, threads: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = {
        "cosine": cosine,
        "probe": [{"what": "cells", "tokens": cosine / 2, "encoder": 1.0, "chance": 0.125}],
        "tokens": 20.0,
        "tokens_by_objects": {"1": 10.0},
        "length": length,
        "threads": threads,
        "seconds": 300.0,
        "language": None,
        "pixels": None,
    }
    if captions is not None:
        rates = {"scene": 0.5, "recall": 0.75}
        found["language"] = {
            "captions": {"exact": captions, "chance": {"exact": 0.0625}},
            "vqa": {"mean": 0.75, "by_kind": {"count": 1.0}, "chance": {"mean": 0.25, "count": 0.375}},
            "images": {**rates, "chance": rates, "ceiling": rates},
            "edits": {"scene": 0.625, "recall": 0.75, "chance": rates, "ceiling": rates},
        }
        found["pixels"] = {"ways": {"text": {**rates, "chance": rates}}}
    return found


def test_the_published_runs_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    published = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("quickstart-*.json"))
    assert published and main(list(map(str, published))) == 0
    printed = capsys.readouterr().out
    assert "tokens of a change asked for, every cell right" in printed and "pixels from image and text" in printed


def test_medians_of_each_kind_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run(0.5), run(0.75, captions=0.875), run(0.875), run(0.25, "fixed"), run(0.625, threads=2)]
    paths = []
    for i, one in enumerate(runs):
        paths.append(tmp_path / f"{i}.json")
        paths[-1].write_text(json.dumps(one))
    assert main(list(map(str, paths))) == 0
    lines = capsys.readouterr().out.splitlines()
    kinds = ["dynamic, 1 thread, 3 seeds", "dynamic, 2 threads, 1 seed", "fixed, 1 thread, 1 seed"]
    assert lines[0] == f"| | {' | '.join(kinds)} | chance |"
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:6]] for line in lines[2:] if (cells := line.split("|"))}
    assert rows["cosine of rebuilt and true features"] == ["0.750", "0.625", "0.250", ""]
    assert rows["cells (probe)"] == ["0.375", "0.312", "0.125", "0.125"]
    assert rows["captions word for word right"] == ["0.875", "", "", "0.062"]
    assert rows["answers right: count"] == ["1.000", "", "", "0.375"]
    assert rows["tokens of a change asked for, every cell right"] == ["0.625", "", "", "0.500"]
    assert rows["pixels from text, every cell right"] == ["0.500", "", "", "0.500"]
