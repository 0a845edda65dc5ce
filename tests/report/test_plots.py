"""Charts say what their data say: in positions, in words, and for data that are empty, constant or not finite."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import warnings
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavit.report import plots


def parse(svg: str | None) -> ElementTree.Element:
    assert svg is not None
    return ElementTree.fromstring(svg)


def texts(svg: str | None) -> list[str]:
    return [node.text or "" for node in parse(svg).iter("text")]


def numbers(d: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+\.?\d*", d)]


def paths(svg: str | None, name: str) -> list[list[tuple[float, float]]]:
    """The corners of every path of a class."""
    found = [path for group in parse(svg).iter("g") if group.get("class") == name for path in group.findall("path")]
    return [list(zip((n := numbers(path.attrib["d"]))[0::2], n[1::2], strict=True)) for path in found]


def marks(svg: str | None, name: str) -> list[tuple[float, float]]:
    """Where the markers of a class are."""
    found = [use for group in parse(svg).iter("g") if group.get("class") == name for use in group.iter("use")]
    return [(float(use.attrib["x"]), float(use.attrib["y"])) for use in found]


def unit(svg: str | None) -> float:
    """Height of one on the vertical axis, from the places of its first two texts."""
    texts = [node for node in parse(svg).iter("text") if "text-anchor: end" in node.attrib["style"]]
    ticks = [(float(node.text or ""), float(node.attrib["y"])) for node in texts[:2]]
    (a, y), (b, z) = ticks
    return (y - z) / (b - a)


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.30000000000000004, "0.3"), (0.25, "0.25"), (12000, "12\u202f000"), (-5, "\u22125"), (0.0001, "0.0001")],
)
def test_ticks_have_the_decimals_that_they_need(value: float, words: str) -> None:
    assert plots.tick(value) == words


def test_thin_keeps_short_curves_with_their_gaps_and_the_mean_of_long_ones() -> None:
    xs, ys = plots.thin([1, 2, 3], [4.0, math.inf, 6.0])
    assert xs.tolist() == [1, 2, 3] and np.isnan(ys).tolist() == [False, True, False]
    xs, ys = plots.thin(range(1000), [float(i % 2) for i in range(1000)], most=100)
    assert ys.tolist() == [0.5] * 100 and xs[0] == 4.5 and xs[-1] == 994.5


def test_line_falls_with_its_data_and_marks_each_switch() -> None:
    svg = plots.line("Loss", [0, 10, 20], [3.0, 2.0, 1.0], "step", "loss", [(0, 12), (12, 20)], 0)
    (points,) = paths(svg, "line")
    assert points == sorted(points) and [y for _, y in points] == sorted(y for _, y in points)  # y grows downwards
    ((switch, _), _) = paths(svg, "switch")[0]
    assert (switch - points[0][0]) / (points[-1][0] - points[0][0]) == pytest.approx(12 / 20, abs=1e-3)
    assert marks(svg, "point") == [pytest.approx(points[-1], abs=0.01)]
    assert {"1", "2", "step", "loss", "0"} <= set(texts(svg))
    assert "Loss. loss from 3 at step 0 to 1 at step 20." == parse(svg).attrib["aria-label"]
    assert points[-1][1] - points[0][1] == pytest.approx(2 * unit(svg), abs=0.03)


def test_a_value_that_is_not_finite_is_a_gap_and_a_lonely_one_a_point() -> None:
    def drawn(values: list[float]) -> str | None:
        return plots.line("", range(len(values)), values, "", "")

    def moves(svg: str | None) -> int:
        (d,) = [p.attrib["d"] for g in parse(svg).iter("g") if g.get("class") == "line" for p in g.findall("path")]
        return d.count("M")

    assert moves(drawn([1, 3, 2, 5, 4])) == 1 and len(marks(drawn([1, 3, 2, 5, 4]), "point")) == 1
    assert moves(drawn([1, 3, math.nan, 5, 4])) == 2
    assert len(marks(drawn([1, 3, math.inf, 5, math.nan, 4, 2]), "point")) == 2  # the 5 and the end
    assert len(marks(drawn([7]), "point")) == 1


def test_histogram_bars_add_up_to_the_values() -> None:
    svg = plots.histogram("Cosine", [0.8, 0.81, 0.9, 0.9, 0.95, 1.0, math.nan], "cosine", "scenes", 1.0)
    heights = [max(y for _, y in bar) - min(y for _, y in bar) for bar in paths(svg, "bar")]
    assert sum(heights) / unit(svg) == pytest.approx(6, abs=0.01)
    assert "6 values from 0.800 to 1.000, mean 0.893" in parse(svg).attrib["aria-label"]
    assert "mean 0.893" in texts(svg) and len(paths(svg, "mean")) == 1


def test_strip_draws_every_value_and_its_means() -> None:
    svg = plots.strip("Tokens", {1: [10, 12, 11, 11], 2: [20], 3: []}, "objects", "tokens")
    assert len(marks(svg, "dot")) == 5 == len(set(marks(svg, "dot")))
    assert len(paths(svg, "box")) == len(paths(svg, "mean")) == 2
    assert {"11.0", "20.0", "1", "2"} <= set(texts(svg)) and "3" not in texts(svg)
    assert "1: mean 11.0 over 4; 2: mean 20.0 over 1." in parse(svg).attrib["aria-label"]


def test_ranked_falls_from_the_largest_count() -> None:
    svg = plots.ranked("Codes", [0, 3, 9, 1], "codes", "uses")
    (points,) = paths(svg, "line")
    assert points == sorted(points) and [y for _, y in points] == sorted(y for _, y in points)
    assert points[-1][1] - points[0][1] == pytest.approx(9 * unit(svg), abs=0.03)
    assert "3 of 4 used; the most used one 9 times, an even spread would be 3.2" in parse(svg).attrib["aria-label"]


def test_nothing_to_draw_is_none() -> None:
    assert plots.line("", [], [], "", "") is None
    assert plots.line("", [1], [math.nan], "", "") is None
    assert plots.histogram("", [math.inf], "", "", 1) is None
    assert plots.strip("", {1: []}, "", "") is None
    assert plots.ranked("", [0, 0], "", "") is None
    assert plots.ranked("", [], "", "") is None


@settings(max_examples=15)
@given(st.lists(st.floats(-1e4, 1e4) | st.just(math.nan), min_size=1, max_size=30))
def test_any_numbers_give_finite_drawings_inside_the_frame(values: list[float]) -> None:
    svgs = [plots.line("", range(len(values)), values, "step", "y"), plots.histogram("", values, "x", "n", 1)]
    for svg in filter(None, svgs):
        width, height = numbers(parse(svg).attrib["viewBox"])[2:]
        assert not re.search(r"\b(nan|inf)\b", svg)
        corners = [c for name in ("line", "bar", "mean") for path in paths(svg, name) for c in path]
        corners += marks(svg, "point")
        assert corners and all(0 <= x <= width and 0 <= y <= height for x, y in corners)


EVIL = """<script>alert(1)</script></style>"'& $x^2$ $ \\frac --> #2457c5 \u202e\u2067 日本 \U0001f9a5"""


def test_names_stay_words_whatever_they_are() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a font without a letter, a formula that is none
        svgs = [
            plots.strip(EVIL, {EVIL: [1, 2]}, EVIL, EVIL),
            plots.line(EVIL, [1, 2], [1, 2], EVIL, EVIL),
            plots.histogram(EVIL, [1, 2], EVIL, EVIL, 1),
            plots.ranked(EVIL, [1, 2], EVIL, EVIL),
        ]
    for svg in svgs:
        assert {node.tag for node in parse(svg).iter()} <= {"svg", "g", "defs", "path", "use", "text"}
        assert parse(svg).attrib["aria-label"].startswith(EVIL[:50])
        shown = [words for words in texts(svg) if "alert" in words]
        assert shown and all("$x^2$ $ \\frac --> #2457c5 \ufffd\ufffd \ufffd\ufffd \ufffd" in words for words in shown)
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", svg or "")


def test_a_chart_is_the_same_again_and_shares_no_id_with_another() -> None:
    def drawn(title: str) -> str:
        return plots.strip(title, {1: [1, 2]}, "x", "y") or ""

    assert drawn("a") == drawn("a")
    ids = [set(re.findall(r' id="([^"]*)"', drawn(title))) for title in "ab"]
    assert ids[0] and ids[1] and not ids[0] & ids[1]
    assert set(re.findall(r'href="#([^"]*)"', drawn("a"))) <= ids[0]


def test_charts_follow_the_page_and_not_the_users_settings() -> None:
    before = plots.line("Loss", [0, 1], [1, 2], "step", "loss") or ""
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30, "svg.fonttype": "path"}):
        assert plots.line("Loss", [0, 1], [1, 2], "step", "loss") == before
        assert matplotlib.rcParams["font.size"] == 30  # theirs again
    colours = re.findall('(?:fill|stroke): ([^;"]+)', before)
    assert set(colours) <= {"none", *(f"var(--{name})" for name in plots.VARIABLES.values())}


def test_charts_are_small() -> None:
    rng = np.random.default_rng(0)
    assert len(plots.line("", range(5000), rng.random(5000), "step", "y") or "") < 12_000
    assert len(plots.strip("", {n: rng.integers(0, 40, 100) for n in range(3)}, "x", "y") or "") < 40_000


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_swarm_keeps_every_value_and_stays_in_its_column(values: list[int]) -> None:
    dots = plots.swarm(values, 4.0, 20.0)
    assert sorted(value for _, value in dots) == sorted(values)
    assert len(set(dots)) == len(dots) and max(abs(shift) for shift, _ in dots) <= 20 + 1e-9


def test_what_draws_is_loaded_when_something_is_drawn_and_never_pyplot() -> None:
    code = """
import sys, lavit, lavit.cli, lavit.kernels, lavit.report.token_map
loaded = lambda: [name for name in ("matplotlib", "jinja2", "matplotlib.pyplot") if name in sys.modules]
lavit.cli.main([])
assert not loaded(), loaded()
import lavit.quickstart.run, lavit.commands.tokenize_run  # transformers, which they need, loads jinja2 itself
assert "matplotlib" not in loaded() and "lavit.report.page" not in sys.modules
lavit.report.render_report(lavit.report.QuickstartResult("lavit quickstart", 1.0, "CPU", 1, 0, code_counts=[1]))
assert loaded() == ["matplotlib", "jinja2"], loaded()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_held_out_values_are_points_on_the_axes_of_training() -> None:
    others = [10, 30, 40], [4.0, 2.0, math.nan]
    svg = plots.line("Loss", [0, 10, 20], [3.0, 2.0, 1.0], "step", "loss", held_out=others)
    first, last = marks(svg, "held")
    (points,) = paths(svg, "line")
    assert (last[0] - first[0]) / (points[2][0] - points[1][0]) == pytest.approx(2, abs=1e-2)
    assert last[1] == pytest.approx(points[1][1], abs=0.02) and first[1] < points[0][1]  # y grows downwards
    assert "Held out: from 4 at step 10 to 2 at step 30." in parse(svg).attrib["aria-label"]


def test_scatter_has_a_dot_for_each_finite_pair() -> None:
    svg = plots.scatter("Tokens", [1, 2, math.nan, 3], [10, 20, 5, 30], "edges", "tokens")
    dots = marks(svg, "dot")
    assert len(dots) == 3 and dots[2][1] - dots[0][1] == pytest.approx(-20 * unit(svg), abs=0.05)
    assert "3 pairs: edges from 1 to 3, tokens from 10 to 30." in parse(svg).attrib["aria-label"]
    assert len(marks(plots.scatter("", range(5000), range(5000), "x", "y", most=100), "dot")) == 100
    assert plots.scatter("", [math.nan], [1.0], "x", "y") is None


def test_letters_in_parts_are_drawn_whole():
    assert plots.drawable("e\u0301te\u0301") == "\u00e9t\u00e9"
