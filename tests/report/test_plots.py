"""Charts say what their data say: in positions, in words, and for data that are empty, constant or not finite."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavit import charts


def parse(svg: str | None) -> ElementTree.Element:
    assert svg is not None
    return ElementTree.fromstring(svg)


def texts(svg: str | None) -> list[str]:
    return [node.text or "" for node in parse(svg).iter("text")]


def numbers(d: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+\.?\d*", d)]


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(1, 12))
def test_ticks_cover_the_range_evenly_and_are_few(low: float, span: float, wanted: int) -> None:
    values = charts.ticks(low, low + span, wanted)
    steps = [b - a for a, b in zip(values[:-1], values[1:], strict=True)]
    slack = 1e-6 * steps[0]
    assert 2 <= len(values) <= wanted + 3  # rounding outwards adds a step at each end
    assert values[0] <= low + slack and values[-1] >= low + span - slack
    assert max(steps) - min(steps) <= 1e-9 * max(map(abs, values)) + slack


def test_ticks_refuse_what_is_no_range() -> None:
    for low, high in [(1.0, 0.0), (math.nan, 1.0), (0.0, math.inf)]:
        with pytest.raises(ValueError, match="low, high"):
            charts.ticks(low, high)


@pytest.mark.parametrize(
    ("value", "step", "words"),
    [(0.30000000000000004, 0.1, "0.3"), (0.25, 0.05, "0.25"), (12000, 2000, "12\u202f000"), (-5, 5, "\u22125")],
)
def test_labels_have_the_decimals_of_their_step(value: float, step: float, words: str) -> None:
    assert charts.label(value, step) == words


def test_thin_keeps_short_curves_and_the_mean_of_long_ones() -> None:
    assert charts.thin([1, 2, 3], [4.0, math.nan, 6.0]) == ([1.0, 3.0], [4.0, 6.0])
    xs, ys = charts.thin(list(range(1000)), [float(i % 2) for i in range(1000)], most=100)
    assert len(xs) == 100 and ys == [0.5] * 100 and xs[0] == 4.5 and xs[-1] == 994.5


def test_line_rises_with_its_data_and_marks_each_switch() -> None:
    svg = charts.line("Loss", [0, 10, 20], [3.0, 2.0, 1.0], x_label="step", y_label="loss", phases=[(0, 12), (12, 20)])
    root = parse(svg)
    points = numbers(next(p for p in root.iter("path") if p.get("class") == "line").attrib["d"])
    assert points[0::2] == sorted(points[0::2]) and points[1::2] == sorted(points[1::2])  # falling: y grows downwards
    (switch,) = [p for p in root.iter("path") if p.get("class") == "switch"]
    share = (numbers(switch.attrib["d"])[0] - points[0]) / (points[-2] - points[0])
    assert share == pytest.approx(12 / 20, abs=0.1 / (points[-2] - points[0]))  # coordinates are rounded to 0.1
    assert {"1", "2", "step", "loss"} <= set(texts(svg))
    assert "from 3 at step 0 to 1 at step 20" in root.attrib["aria-label"]


def test_histogram_bars_add_up_to_the_values() -> None:
    values = [0.8, 0.81, 0.9, 0.9, 0.95, 1.0, math.nan]
    root = parse(charts.histogram("Cosine", values, x_label="cosine", y_label="scenes", high=1.0))
    heights = [float(r.attrib["height"]) for r in root.iter("rect") if r.get("class") == "bar"]
    base = [p for p in root.iter("path") if p.get("class") == "grid"]
    rows = sorted((numbers(p.attrib["d"])[1] for p in base), reverse=True)
    labels = [t for t in texts(charts.histogram("", values, x_label="", y_label="", high=1.0)) if t][: len(rows)]
    unit = (rows[0] - rows[1]) / (float(labels[1]) - float(labels[0]))
    assert sum(heights) / unit == pytest.approx(6, abs=0.1)
    assert "6 values from 0.800 to 1.000, mean 0.893" in root.attrib["aria-label"]


def test_strip_draws_every_value_and_its_means() -> None:
    svg = charts.strip("Tokens", {"1": [10, 12, 11, 11], "2": [20], "3": []}, x_label="objects", y_label="tokens")
    dots = [p.attrib["d"].count("h0") for p in parse(svg).iter("path") if p.get("class") == "dots"]
    assert dots == [4, 1]
    assert {"11.0", "20.0"} <= set(texts(svg)) and "3" not in texts(svg)


def test_ranked_falls_from_the_largest_count() -> None:
    root = parse(charts.ranked("Codes", [0, 3, 9, 1], x_label="codes", y_label="uses"))
    points = numbers(next(p for p in root.iter("path") if p.get("class") == "line").attrib["d"])
    assert points[1::2] == sorted(points[1::2]) and len(points) == 2 * 2 * 4
    assert "3 of 4 used; the most used one 9 times, an even spread would be 3.2" in root.attrib["aria-label"]


def test_nothing_to_draw_is_none() -> None:
    assert charts.line("", [], [], x_label="", y_label="") is None
    assert charts.line("", [1], [math.nan], x_label="", y_label="") is None
    assert charts.histogram("", [math.inf], x_label="", y_label="") is None
    assert charts.strip("", {"1": []}, x_label="", y_label="") is None
    assert charts.ranked("", [0, 0], x_label="", y_label="") is None


@given(st.lists(st.floats(-1e4, 1e4) | st.just(math.nan), min_size=1, max_size=30))
def test_any_numbers_give_finite_drawings_inside_the_frame(values: list[float]) -> None:
    svgs = [
        charts.line("", range(len(values)), values, x_label="step", y_label="y", floor=None),
        charts.histogram("", values, x_label="x", y_label="n"),
    ]
    for svg in filter(None, svgs):
        root = parse(svg)
        width, height = numbers(root.attrib["viewBox"])[2:]
        assert "nan" not in svg and "inf" not in svg
        for node in root.iter("rect"):
            assert float(node.attrib["width"]) >= 0 and float(node.attrib["height"]) >= 0
        for p in (p for p in root.iter("path") if p.get("class") == "line"):
            coordinates = numbers(p.attrib["d"])
            assert all(0 <= x <= width for x in coordinates[0::2]) and all(0 <= y <= height for y in coordinates[1::2])


def test_names_are_escaped() -> None:
    svg = charts.strip('<b>"t"', {"<script>": [1, 2]}, x_label="<x>", y_label="a & b")
    assert parse(svg).attrib["aria-label"].startswith('<b>"t"') and "<script>" in texts(svg)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_swarm_keeps_every_value_and_stays_in_its_column(values: list[int]) -> None:
    dots = charts.swarm(values, 4.0, 20.0)
    assert sorted(value for _, value in dots) == sorted(values)
    assert len(set(dots)) == len(dots) and max(abs(shift) for shift, _ in dots) <= 20 + 1e-9
