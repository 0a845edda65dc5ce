"""Laws of the table: medians of runs, of each length apart, chance beside, nothing where nothing was measured."""

import copy
import json

import pytest

from examples.emoji.__main__ import main
from examples.emoji.table import read_figures, table


def shares(**more):
    return {"nearest": 0.25, "chance_nearest": 0.01, "ten": 0.5, "chance_ten": 0.1, **more}


FIGURES = {
    "tokens": dict(length="dynamic", cosine=0.9, chance_cosine=0.2, mean=31.25, with_edges=None, with_jpeg_size=-0.5),
    "drawn again": dict(psnr=20.0, background=1.0, chance_background=0.125, colour=None, chance_colour=None),
    "captions": {"exact": 0.5, "parts": {"name": 0.75}, "chance": {"name": 0.002}},
    "answers": {"all": {"right": 0.9, "chance": 0.3}, "tone": {"right": 0.95, "chance": 0.2}},
    "drawn": shares(),
    "changed": {"all": shares(unchanged_nearest=0.125, unchanged_ten=0.75), "tone": shares()},
}


def of(cosine, length="dynamic", split="train", **more):
    figures = copy.deepcopy(FIGURES) | more
    figures["tokens"] |= {"cosine": cosine, "length": length}
    return {split: figures}


def cells(runs):
    heading, line, *rows = [row.strip("| ").split(" | ") for row in table(runs).splitlines()]
    assert {len(heading)} == {len(row) for row in [line, *rows]} and set("".join(line)) == set("-:")
    return heading[1:], {row[0]: row[1:] for row in rows}


def test_a_cell_is_the_median_of_the_runs():
    heading, rows = cells([of(0.9), of(0.95), of(0.91)])
    assert heading == ["train, dynamic", "chance"]
    assert rows["cosine"][0] == "0.910" and rows["tokens"][0] == "31.2" and rows["drawn again: dB"][0] == "20.0"
    assert cells([of(0.9), of(0.95)])[1]["cosine"][0] == "0.925"


def test_chance_stands_beside_every_share_that_has_one():
    rows = cells([of(0.9)])[1]
    for name, row in {
        "cosine": ["0.900", "0.200"],
        "caption: name": ["0.750", "0.002"],
        "answer: tone": ["0.950", "0.200"],
        "drawn: nearest": ["0.250", "0.010"],
        "drawn: among ten": ["0.500", "0.100"],
        "edit, tone: among ten": ["0.500", "0.100"],
        "drawn again: background": ["1.000", "0.125"],
    }.items():
        assert rows[name] == row
    assert rows["edit, left as it is: among ten"][0] == "0.750"


def test_dynamic_and_fixed_length_stand_side_by_side_and_are_not_mixed():
    runs = [of(0.9), of(0.5, "fixed"), of(0.7, "fixed"), of(0.8, split="held-out-pictures")]
    heading, rows = cells(runs)
    assert heading == ["train, dynamic", "train, fixed", "chance", "held-out-pictures, dynamic", "chance"]
    assert table(runs).startswith("| median of 1 dynamic, 2 fixed |")
    assert rows["cosine"][:2] == ["0.900", "0.600"] and rows["cosine"][3] == "0.800"


def test_what_was_not_measured_has_no_number():
    rows = cells([of(0.9, changed={}), of(0.9, split="held-out-pictures")])[1]
    assert rows["tokens: rank correlation with edges"] == ["–"] * 4
    assert rows["edit, all: nearest"] == ["–", "–", "0.250", "0.010"]
    with pytest.raises(ValueError, match="runs: expected figures of train"):
        table([{}])


def test_figures_are_those_of_a_run_or_of_a_judge(tmp_path, capsys):
    assert main(["table", str(tmp_path)]) == 2 and "RUN: there is no figures.json" in capsys.readouterr().err
    (tmp_path / "figures.json").write_text(json.dumps(of(0.5)))
    assert read_figures(tmp_path) == read_figures(tmp_path / "figures.json") == of(0.5)
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged" / "figures.json").write_text(json.dumps(of(0.6)))
    assert read_figures(tmp_path) == of(0.6)
    assert main(["table", str(tmp_path)]) == 0 and "| cosine | 0.600 |" in capsys.readouterr().out
