"""How time grows with the number of kept tokens, as a picture: ``python -m benchmarks.plot FILE.json OUT.svg``.

FILE.json is written by ``pytest benchmarks --benchmark-json``. Every case that says what it is a part of
(``growth="..."``, ``kept=...`` in benchmarks.timing.measure) is a point of that panel; both axes are logarithmic. A
dashed line continues the first point of the first curve in proportion to the tokens, so that what is above it grows
faster than they do. Prints the same as Markdown.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.table import cases_of
from lavit.report.plots import drawing, tick

Points = list[tuple[int, float]]  # kept tokens, seconds
INKS = ("#2457c5", "#a34c00", "#177245", "#7a3b9c")
MARKERS = ("o-", "s-", "^-", "D-")
POINT = 0.72  # points in a hundredth of an inch
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


def fitted(points: Sequence[tuple[float, float]]) -> float:
    """The exponent of the power nearest to all points, by least squares of the logarithms."""
    x, y = zip(*points, strict=True)
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def picture(panels: dict[str, dict[str, Points]]) -> str:
    """One log-log chart a panel below the other, with its curves named at their ends and the line of proportion."""
    file = io.StringIO()
    with drawing("growth", 13 * POINT):
        spaced = ConstrainedLayoutEngine(hspace=0.06)
        figure = Figure((6.2, 3.64 * len(panels)), facecolor="white", layout=spaced)
        for axes, (title, curves) in zip(np.ravel(figure.subplots(len(panels), 1)), panels.items(), strict=True):
            draw_panel(axes, title, curves)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return re.sub(r"[ \t]+$", "", file.getvalue(), flags=re.MULTILINE)


def name_heights(curves: dict[str, Points], span: float) -> dict[str, float]:
    """The value beside which each curve's name stands: its last, or, where several end in nearly the same place, as far
    from it as keeps the names apart. span: of the panel, the logarithm of its highest over its lowest value."""
    least = 0.07 * span
    heights = {name: math.log(points[-1][1]) for name, points in curves.items()}
    for end in {points[-1][0] for points in curves.values()}:
        names = sorted((name for name, points in curves.items() if points[-1][0] == end), key=heights.__getitem__)
        for _ in range(100):
            for low, high in itertools.pairwise(names):
                near = max(0.0, least - (heights[high] - heights[low]))
                heights[low] -= near / 2
                heights[high] += near / 2
    return {name: math.exp(height) for name, height in heights.items()}


def draw_panel(axes: Axes, title: str, curves: dict[str, Points]) -> None:
    axes.set_title(title, loc="left", size=13 * POINT)
    axes.set(xlabel="kept tokens", ylabel="seconds", xscale="log", yscale="log")
    for i, points in enumerate(curves.values()):
        ink = INKS[i % len(INKS)]
        axes.plot(*zip(*points, strict=True), MARKERS[i % len(MARKERS)], color=ink, ms=5, clip_on=False, gid="curve")
    axes.set_ylim(axes.get_ylim())  # what follows does not stretch it
    heights = name_heights(curves, math.log(axes.get_ylim()[1] / axes.get_ylim()[0]))
    for i, (name, points) in enumerate(curves.items()):
        end, ink = (points[-1][0], heights[name]), INKS[i % len(INKS)]
        axes.annotate(name, end, (8, 0), textcoords="offset points", va="center", color=ink, annotation_clip=False)
    tokens = sorted({n for points in curves.values() for n, _ in points})
    n, t = next(iter(curves.values()))[0]
    ends = tokens[0], tokens[-1]
    axes.plot(ends, [t * end / n for end in ends], color="#888888", linewidth=1, linestyle=(0, (5, 4)), gid="even")
    axes.set_xticks([n for n, _ in next(iter(curves.values()))])
    axes.set_xlim(ends if ends[0] < ends[1] else None)
    axes.xaxis.set_major_formatter(tick)
    axes.yaxis.set_major_formatter(tick)
    axes.minorticks_off()


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
