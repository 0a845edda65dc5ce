"""Charts as SVG for the page, by matplotlib: text stays text, colours are those of the page's style sheet.

Every chart says its content in words to screen readers, and its parts have a class: ``line``, ``point``, ``bar``,
``dot``, ``box``, ``mean``, ``area``, ``band``, ``switch``. Without a finite value there is no chart, but None.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from lavit.report.format import THIN, plain, whole_letters

INK, SOFT, HAIR, BAND = "#1c1e22", "#565c66", "#eceae4", "#f3f3f1"
BLUE, WASH, AMBER = "#2457c5", "#e4eaf8", "#a34c00"
VARIABLES = {INK: "ink", SOFT: "soft", HAIR: "hair", BAND: "band", BLUE: "blue", WASH: "wash", AMBER: "amber"}
"""The style sheet's name of each colour: a chart follows its page into the dark."""

SETTINGS: Any = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "text.parse_math": False,  # a dollar in a name is a dollar
    "text.color": INK,
    "svg.fonttype": "none",
    **{f"axes.spines.{side}": False for side in ("left", "right", "top")},
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), SOFT),
    **{"axes.axisbelow": True, "axes.grid": True, "axes.grid.axis": "y", "grid.color": HAIR},
    **{"axes.xmargin": 0, "axes.ymargin": 0, "axes.autolimit_mode": "round_numbers"},
    **{"xtick.bottom": False, "ytick.left": False, "lines.solid_capstyle": "round", "lines.markeredgewidth": 0},
}


@contextmanager
def drawing(salt: str = "lavit", size: float = 12) -> Iterator[None]:
    """Matplotlib with these settings, whatever the user's are, which are theirs again afterwards. salt: of the ids in
    an SVG; pictures on one page need different ones. size: of text, in points."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**SETTINGS, "svg.hashsalt": salt, "font.size": size})
        yield


def drawable(words: str) -> str:
    """Words with U+FFFD for what the font does not have, so that a picture is the same on every machine."""
    return "".join(c if c.isspace() or ord(c) in _characters() else "\ufffd" for c in whole_letters(words))


@cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def tick(value: float, _: Any = None) -> str:
    return f"{value:,.10g}".replace(",", THIN).replace("-", "\u2212")


def thin(xs: Sequence[float], ys: Sequence[float], most: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """A curve with NaN for what is not finite; of more than ``most`` points, the means of ``most`` groups."""
    groups = np.array_split(np.arange(len(xs)), min(len(xs), most) or 1)
    finite = [[v for v in np.take(ys, g) if math.isfinite(v)] or [math.nan] for g in groups]
    return np.array([np.take(xs, g).mean() for g in groups]), np.array([np.mean(values) for values in finite])


def line(
    title: str,
    xs: Sequence[float],
    ys: Sequence[float],
    x_label: str,
    y_label: str,
    phases: Sequence[tuple[float, float]] = (),
    floor: float = math.nan,
) -> str | None:
    """A curve over steps with its last point marked; it has a gap where it is not finite.

    phases: start and end of each phase on the x axis; they are numbered from 1 above the curve and switches are marked.
    floor: a value that the y axis covers in any case.
    """
    if not np.isfinite(ys).any():
        return None
    x, y = thin(xs, ys)
    (seen,) = np.isfinite(y).nonzero()
    with drawing(title):
        axes = _axes(340, 208, x_label, y_label)
        start, end = min([x[0], *(a for a, _ in phases)]), max([x[-1], *(b for _, b in phases)])
        axes.plot(x, y, color=BLUE, linewidth=2, gid="line")
        alone = [i for i in seen if i == seen[-1] or not {i - 1, i + 1} & set(seen)]
        axes.plot(x[alone], y[alone], "o", color=BLUE, gid="point")
        axes.update_datalim([(start, floor)], updatex=False)
        axes.autoscale_view(scalex=False)
        axes.set_xlim(start, end if end > start else start + 1)  # the frame ends where the run ends
        for number, (a, b) in enumerate(phases, 1):
            if number % 2 == 0:
                axes.axvspan(a, b, color=BAND, linewidth=0, zorder=0, gid="band")
            if number > 1:
                axes.axvline(a, color=SOFT, linewidth=1.3, linestyle=(0, (3, 3)), gid="switch")
            if len(phases) > 1:
                _above(axes, (a + b) / 2, str(number), BLUE, "center")
        (first, to), (begin, stop) = y[seen[[0, -1]]], x[seen[[0, -1]]]
        words = f"{y_label} from {first:.4g} at {x_label} {begin:.0f} to {to:.4g} at {x_label} {stop:.0f}."
        return _svg(axes, title, words)


def histogram(title: str, values: Sequence[float], x_label: str, y_label: str, high: float) -> str | None:
    """How often each range of values occurs, and their mean. The x axis ends at ``high`` if no value is larger."""
    values = [float(v) for v in values if math.isfinite(v)]
    if not values:
        return None
    with drawing(title):
        axes = _axes(400, 270, x_label, y_label)
        low, high, mean = min(values), max(high, *values), float(np.mean(values))
        # A few percent of room keeps all-equal values from becoming a single slab as wide as the chart.
        span = min(low, high - 0.02 * (abs(high) or 1)), high
        axes.hist(values, 24, range=span, rwidth=0.92, color=BLUE, gid="bar")
        axes.axvline(mean, color=AMBER, linewidth=2.5, gid="mean")
        _above(axes, mean, f"mean {mean:.3f}", INK, "right" if 2 * mean > low + high else "left")
        return _svg(axes, title, f"{len(values)} values from {low:.3f} to {max(values):.3f}, mean {mean:.3f}.")


def swarm(values: Sequence[float], gap: float, half: float) -> list[tuple[float, float]]:
    """Each value with a sideways shift: equal ones ``gap`` apart, closer where they would pass ``half``."""
    dots = []
    for value, n in sorted(Counter(values).items()):
        step = min(gap, 2 * half / max(n - 1, 1))
        dots += [((i - (n - 1) / 2) * step, value) for i in range(n)]
    return dots


def draw_strip(axes: Axes, groups: Mapping[Any, Sequence[float]], width: float, dot: float) -> None:
    """Every value as a dot, one column a group, with quartiles as a box and the mean as a line.

    width: of the axes, and dot: its diameter, in points. Equal values lie side by side, so that the width of a column
    shows how often they occur.
    """
    column = width / len(groups)
    half = min(0.36, 60 / column)
    for i, values in enumerate(groups.values()):
        first, mean, third = np.quantile(values, 0.25), float(np.mean(values)), np.quantile(values, 0.75)
        axes.bar(i, third - first, 2 * half, first, color=WASH, gid="box")
        shifts, heights = zip(*swarm(values, 1.15 * dot / column, half - dot / column), strict=True)
        axes.plot(np.add(shifts, i), heights, "o", color=BLUE, markersize=dot, alpha=0.62, gid="dot")
        axes.plot([i - half, i + half], [mean, mean], color=AMBER, linewidth=0.57 * dot, gid="mean")
        axes.annotate(f"{mean:.1f}", (i + half, mean), (4, 0), textcoords="offset points", va="center", weight="bold")
    axes.set_xticks(range(len(groups)), [drawable(str(name)) for name in groups])
    axes.set(xlim=(-0.5, len(groups) - 0.3), ylim=(0, None))
    axes.locator_params("y", integer=True)


def strip(title: str, groups: Mapping[Any, Sequence[float]], x_label: str, y_label: str) -> str | None:
    """``draw_strip`` as a chart of its own; groups without a value are left out."""
    groups = {name: values for name, values in groups.items() if len(values)}
    if not groups:
        return None
    with drawing(title):
        axes = _axes(400, 270, x_label, y_label)
        draw_strip(axes, groups, 340, 4.4)
        means = (f"{name}: mean {np.mean(values):.1f} over {len(values)}" for name, values in groups.items())
        return _svg(axes, title, "; ".join(means) + ".")


def ranked(title: str, counts: Sequence[int], x_label: str, y_label: str) -> str | None:
    """Counts from the largest to the smallest as an area, with the level of an even spread; None if all are zero."""
    if not sum(counts):
        return None
    with drawing(title):
        axes = _axes(400, 270, x_label, y_label)
        _, heights = thin(range(len(counts)), sorted(counts, reverse=True), 512)
        edges, level = np.linspace(0, len(counts), len(heights) + 1), sum(counts) / len(counts)
        axes.stairs(heights, edges, fill=True, color=WASH, gid="area")
        axes.stairs(heights, edges, baseline=None, color=BLUE, linewidth=2, gid="line")
        axes.axhline(level, color=SOFT, linewidth=1.3, linestyle=(0, (3, 3)), gid="switch")
        axes.annotate("even use", (len(counts), level), (-2, 4), textcoords="offset points", ha="right", weight="bold")
        axes.set(xlim=(0, len(counts)), ylim=(0, None))
        words = f"{sum(n > 0 for n in counts)} of {len(counts)} used; the most used one {max(counts)} times, "
        return _svg(axes, title, f"{words}an even spread would be {level:.1f}.")


def _axes(width: float, height: float, x_label: str, y_label: str) -> Axes:
    axes = Figure((width / 72, height / 72), layout="constrained").add_subplot()
    axes.set(xlabel=drawable(x_label), ylabel=drawable(y_label))
    axes.locator_params(nbins=5, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_formatter(tick)
    axes.yaxis.set_major_formatter(tick)
    return axes


def _above(axes: Axes, x: float, words: str, ink: str, side: str) -> None:
    axes.text(x, 1.03, words, color=ink, ha=side, weight="bold", transform=axes.get_xaxis_transform())


def _svg(axes: Axes, title: str, description: str) -> str:
    """The figure as an element for a page: no name spaces, only ids that are used, colours as variables."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    assert isinstance(axes.figure, Figure)
    axes.figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(file.getvalue())
    for node in root.iter():
        node.tag, node.tail = node.tag.rpartition("}")[2], None
        node.text = node.text if node.tag == "text" else None
        # matplotlib's own rule would hold for the whole page, and nothing that we draw needs clipping.
        node[:] = [child for child in node if not child.tag.endswith(("}style", "}clipPath"))]
        found = {name.rpartition("}")[2]: value for name, value in node.items()}
        name = found.pop("id", "") if node.tag == "g" else ""
        found.pop("clip-path", None)
        if name.isalpha():  # given to a part here; matplotlib's own have numbers
            found["class"] = name
        if "style" in found:
            found["style"] = re.sub("#[0-9a-f]{6}", _variable, found["style"])
        if "d" in found:
            found["d"] = re.sub(r"(\.\d\d)\d+", r"\1", " ".join(found["d"].split()))
        node.attrib = found
    words = plain(f"{title}. {description}")
    root.attrib = {"class": "chart", "viewBox": root.get("viewBox", ""), "role": "img", "aria-label": words}
    return ElementTree.tostring(root, encoding="unicode")


def _variable(colour: re.Match[str]) -> str:
    return f"var(--{VARIABLES[colour[0]]})" if colour[0] in VARIABLES else colour[0]
