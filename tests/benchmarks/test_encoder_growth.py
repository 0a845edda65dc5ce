"""The picture of the encoder's growth: the exponents it names are those of the figures."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

from benchmarks.encoder_growth import main, steps

BATCHES = [1, 2, 4, 8]


def test_ticks_are_one_two_and_five() -> None:
    assert steps(0.9, 60) == [1, 2, 5, 10, 20, 50]


def test_a_picture_is_drawn_from_the_figures_in_a_file(tmp_path, capsys) -> None:
    figures = {"images_per_second": [2.0] * 4, "peak_bytes": [10**6 * b for b in BATCHES]}
    curve = {"name": "way", "batches": BATCHES, **figures}
    (tmp_path / "figures.json").write_text(json.dumps({"curves": [curve]}))
    assert main([str(tmp_path / "out.svg"), "--json", str(tmp_path / "figures.json")]) == 0
    ElementTree.parse(tmp_path / "out.svg")
    assert "way: images/s ~ batch^0.00, memory ~ batch^1.00" in capsys.readouterr().out.replace("-0.00", "0.00")
