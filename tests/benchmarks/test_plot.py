"""The picture of growth: what belongs to it, what it says of a proportional and of a quadratic cost."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.plot import fitted, main, markdown, name_heights, panels_of, slope


def case(name: str, kept: int, seconds: float, **extra) -> dict:
    info = {"implementation": name, "kept": kept, "growth": "attention", "passed": True, **extra}
    stats = {"median": seconds, "q1": seconds, "q3": seconds}
    return {"name": name, "group": f"{kept}", "param": None, "stats": stats, "extra_info": info}


def report(*cases: dict) -> dict:
    return {"benchmarks": [*cases, case("elsewhere", 1, 1.0, growth=None) | {"extra_info": {"implementation": "x"}}]}


SVG = "{http://www.w3.org/2000/svg}"
TOKENS = (20, 80, 320, 1280)
LINEAR = [case("packed", n, 1e-5 * n) for n in TOKENS]
SQUARE = [case("release", n, 1e-6 * n * n) for n in TOKENS]


def test_exponents_are_those_of_the_cost():
    curves = panels_of(report(*SQUARE, *LINEAR))["attention"]
    assert list(curves) == ["packed", "release"]  # ours first
    assert slope(curves["packed"]) == pytest.approx(1) and slope(curves["release"]) == pytest.approx(2)
    words = markdown({"attention": curves})
    assert "packed: 10 at 20" in words and "tokens^1.00" in words and "tokens^2.00" in words


def test_names_of_curves_that_end_in_one_place_do_not_lie_on_each_other():
    ends = {"a": (9, 2.1), "b": (9, 2.0), "c": (9, 2.05), "d": (9, 8.0), "e": (5, 2.0)}
    curves = {name: [(1, 1.0), end] for name, end in ends.items()}
    found = name_heights(curves, math.log(10))
    assert found["d"] == pytest.approx(8.0) and found["e"] == pytest.approx(2.0)
    assert found["c"] == pytest.approx(2.05, rel=0.02)  # in the middle of the three
    for low, high in (("b", "c"), ("c", "a"), ("a", "d")):
        assert math.log(found[high] / found[low]) >= 0.069 * math.log(10)
    assert name_heights(curves, 0.1) == pytest.approx({name: value for name, (_, value) in ends.items()})


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 0.6, 1.0])
def test_the_fitted_exponent_is_that_of_a_power(exponent):
    assert fitted([(n, 3e-4 * n**exponent) for n in (64, 256, 1024)]) == pytest.approx(exponent, abs=1e-12)


def test_wrong_results_are_no_points():
    wrong = case("packed", 5, 1.0, passed=False)
    assert panels_of(report(wrong, *LINEAR))["attention"]["packed"][0] == (20, pytest.approx(2e-4))


def test_the_picture_holds_a_point_for_every_case_in_log_log_places(tmp_path, capsys):
    (tmp_path / "figures.json").write_text(json.dumps(report(*LINEAR, *SQUARE)))
    assert main([str(tmp_path / "figures.json"), str(tmp_path / "growth.svg")]) == 0
    curves = [
        [(float(use.attrib["x"]), float(use.attrib["y"])) for use in group.iter(f"{SVG}use")]
        for group in ElementTree.parse(tmp_path / "growth.svg").iter(f"{SVG}g")
        if group.get("id") == "curve"
    ]
    assert [len(points) for points in curves] == [4, 4]
    slopes = []
    for points in curves:
        (dx, dy), *others = [(c - a, d - b) for (a, b), (c, d) in zip(points[:-1], points[1:], strict=True)]
        # Every step is four times the tokens; the places have six decimals.
        assert all(math.isclose(x, dx, abs_tol=1e-5) and math.isclose(y, dy, abs_tol=1e-5) for x, y in others)
        slopes.append(dy / dx)
    assert slopes[1] == pytest.approx(2 * slopes[0], rel=1e-5)  # quadratic against proportional
    assert "µs a kept token" in capsys.readouterr().out


def test_a_file_without_growth_is_an_error(tmp_path):
    (tmp_path / "figures.json").write_text(json.dumps(report()))
    with pytest.raises(SystemExit):
        main([str(tmp_path / "figures.json"), str(tmp_path / "growth.svg")])
