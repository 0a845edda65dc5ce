"""The picture of a token's time against its context."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from benchmarks.language import growth


def test_one_command_measures_both_forms_and_draws_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(growth, "CONTEXTS", (16, 64, 256))
    monkeypatch.setattr(growth, "ROUNDS", 1)
    assert growth.main([str(tmp_path / "growth.svg")]) == 0
    drawn = ElementTree.parse(tmp_path / "growth.svg").iter("{http://www.w3.org/2000/svg}g")
    points = [len(list(group.iter("{http://www.w3.org/2000/svg}use"))) for group in drawn if group.get("id") == "curve"]
    assert points == [3, 3]
    printed = capsys.readouterr().out
    assert "- lavit: " in printed and "- transformers: " in printed and printed.count("time as context^") == 2
