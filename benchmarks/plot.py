"""How time grows with the number of kept tokens, as a picture: ``python -m benchmarks.plot FILE.json OUT.svg``.

FILE.json is written by ``pytest benchmarks --benchmark-json``. Every case that says what it is a part of
(``growth="..."``, ``kept=...`` in benchmarks.timing.measure) is a point of that panel; both axes are logarithmic. A
dashed line continues the first point of the first curve in proportion to the tokens, so that what is above it grows
faster than they do. Prints the same as Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import cases_of
from lavit.charts import Plot, path

Points = list[tuple[int, float]]  # kept tokens, seconds
INKS = ("#2457c5", "#a34c00", "#177245", "#7a3b9c")
STYLE = (
    "<style>svg { font: 13px system-ui, sans-serif; fill: #1c1e22; background: #fff } path { fill: none }"
    " .grid { stroke: #e2e0da } .axis { stroke: #888 } .name { fill: #565c66 } .curve { stroke-width: 2 }"
    " .even { stroke: #888; stroke-dasharray: 5 4 }"
    + "".join(f" .c{i} {{ stroke: {ink} }} .f{i} {{ fill: {ink} }}" for i, ink in enumerate(INKS))
    + "</style>"
)
WIDTH, HEIGHT, GAP = 620, 320, 44
OURS_FIRST = ("packed", "lavit")


def panels_of(report: dict[str, Any]) -> dict[str, dict[str, Points]]:
    """The curves of every panel: implementation -> points in the order of their tokens, ours first."""
    panels: dict[str, dict[str, Points]] = {}
    for case in cases_of(report["benchmarks"]):
        if "growth" in case.extra and case.extra.get("passed"):
            curves = panels.setdefault(case.extra["growth"], {})
            curves.setdefault(case.implementation, []).append((case.extra["kept"], case.median))
    return {
        title: {name: sorted(curves[name]) for name in sorted(curves, key=lambda n: not n.startswith(OURS_FIRST))}
        for title, curves in panels.items()
    }


def slope(points: Points) -> float:
    """The exponent between the last two octaves of tokens: 1 is proportional, 2 quadratic."""
    (last, t), earlier = points[-1], points[:-1]
    first, s = min(earlier, key=lambda p: abs(math.log2(last / p[0]) - 2))
    return math.log(t / s) / math.log(last / first)


def panel(title: str, curves: dict[str, Points]) -> str:
    """One log-log chart with its curves, their names at their ends, and the line of proportion."""
    everything = [p for points in curves.values() for p in points]
    x_low, x_high = (f(math.log2(n) for n, _ in everything) for f in (min, max))
    y_low, y_high = math.floor(min(_log10(t) for _, t in everything)), math.ceil(max(_log10(t) for _, t in everything))
    words = "; ".join(f"{name}: {points[0][1]:.3g} s at {points[0][0]} to {points[-1][1]:.3g} s at {points[-1][0]}"
                      for name, points in curves.items())  # fmt: skip
    y_ticks = [float(y) for y in range(y_low, max(y_high, y_low + 1) + 1)]
    x_end = x_high if x_high > x_low else x_low + 1
    plot = Plot(title, words, [x_low, x_end], y_ticks, WIDTH, HEIGHT, left=74, right=130, top=30)
    plot.text(plot.left, 16, title, "start", "strong")
    ticks = {math.log2(n): f"{n:,}" for n in sorted({n for n, _ in next(iter(curves.values()))})}
    plot.axes("kept tokens", "seconds", ticks, {y: f"{10.0**y:g}" for y in y_ticks})
    n, t = next(iter(curves.values()))[0]
    proportional = [(x, _log10(t) + (x - math.log2(n)) * math.log10(2)) for x in (x_low, x_end)]
    plot.add(f'<path class="even" d="{path([(plot.x(x), plot.y(min(y, y_ticks[-1]))) for x, y in proportional])}"/>')
    for i, (name, points) in enumerate(curves.items()):
        places = [(plot.x(math.log2(n)), plot.y(_log10(t))) for n, t in points]
        plot.add(f'<path class="curve c{i % len(INKS)}" d="{path(places)}"/>')
        for x, y in places:
            plot.add(f'<circle class="f{i % len(INKS)}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>')
        plot.text(places[-1][0] + 8, places[-1][1] + 4, name, "start", f"f{i % len(INKS)}")
    return plot.svg()


def picture(panels: dict[str, dict[str, Points]]) -> str:
    """All panels, one below the other."""
    height = len(panels) * (HEIGHT + GAP)
    charts = (
        chart.replace("<svg ", f'<svg y="{i * (HEIGHT + GAP)}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        for i, chart in enumerate(panel(title, curves) for title, curves in panels.items())
    )
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{STYLE}{"".join(charts)}</svg>\n'


def markdown(panels: dict[str, dict[str, Points]]) -> str:
    """Microseconds a kept token, and the exponent of the last two octaves."""
    blocks = []
    for title, curves in panels.items():
        lines = [f"**{title}**, µs a kept token", ""]
        for name, points in curves.items():
            each = ", ".join(f"{t / n * 1e6:.3g} at {n:,}" for n, t in points)
            grows = f"; at the end time grows as tokens^{slope(points):.2f}" if len(points) > 1 else ""
            lines.append(f"- {name}: {each}{grows}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _log10(seconds: float) -> float:
    return math.log10(max(seconds, 1e-9))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description="Time against kept tokens, as SVG.")
    parser.add_argument("file", type=Path, help="written by pytest benchmarks --benchmark-only --benchmark-json FILE")
    parser.add_argument("out", type=Path, help="the picture to write, SVG")
    arguments = parser.parse_args(argv)
    panels = panels_of(json.loads(arguments.file.read_text()))
    if not panels:
        parser.error("file: no case of it belongs to a picture of growth")
    arguments.out.write_text(picture(panels))
    print(markdown(panels))
    return 0


if __name__ == "__main__":
    sys.exit(main())
