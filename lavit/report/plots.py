"""Charts as SVG for the page, drawn by matplotlib: text stays text, colours are those of the page's style sheet.

Every chart says its content in words to screen readers. Its parts have a class for what they show: ``line``, ``point``,
``bar``, ``dot``, ``box``, ``mean``, ``area``, ``band``, ``switch``. Without a finite value there is no chart.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator

from lavit.report.format import THIN, plain

INK, SOFT, HAIR, BAND = "#1c1e22", "#565c66", "#eceae4", "#f3f3f1"
BLUE, WASH, AMBER = "#2457c5", "#e4eaf8", "#a34c00"
VARIABLES = {INK: "ink", SOFT: "soft", HAIR: "hair", BAND: "band", BLUE: "blue", WASH: "wash", AMBER: "amber"}
"""The style sheet's name of each colour: an inline chart follows the page into the dark."""

SETTINGS = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "text.parse_math": False,  # a dollar in a name is a dollar
    "text.color": INK,
    "svg.fonttype": "none",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.xmargin": 0,
    "axes.ymargin": 0,
    "grid.color": HAIR,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.bottom": False,
    "ytick.left": False,
    "lines.solid_capstyle": "round",
    "lines.markeredgewidth": 0,
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
    return "".join(c if c.isspace() or ord(c) in _characters() else "\ufffd" for c in plain(words))


@cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def tick(value: float) -> str:
    return f"{value:,.10g}".replace(",", THIN).replace("-", "\u2212")


def ticks(low: float, high: float, wanted: int, whole: bool = False) -> np.ndarray:
    """Round values that cover ``low`` to ``high`` evenly, in about ``wanted`` steps."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value, but for rounding
        high = low + (abs(low) or 1.0)
    return MaxNLocator(wanted, steps=[1, 2, 5, 10], integer=whole).tick_values(low, high)


def scale(axis: Axis, values: Sequence[float] | np.ndarray, low: float, high: float) -> None:
    """Let the axis go from ``low`` to ``high``, with those of the round values that lie there."""
    slack = 1e-6 * (high - low)
    shown = [v for v in values if low - slack <= v <= high + slack]
    axis.set_ticks(shown, [tick(v) for v in shown])
    axis.axes.set(**{f"{axis.axis_name}lim": (low, high)})


def thin(xs: Sequence[float], ys: Sequence[float], most: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """A curve with NaN for what is not finite; of more than ``most`` points, the means of ``most`` groups."""
    x, y = np.asarray(xs, float), np.asarray(ys, float)
    y = np.where(np.isfinite(y), y, math.nan)
    if len(x) > most:
        groups = [part for part in np.array_split(np.arange(len(x)), most)]
        y = np.array([np.nanmean(y[g]) if np.isfinite(y[g]).any() else math.nan for g in groups])
        x = np.array([x[g].mean() for g in groups])
    return x, y


def line(
    title: str,
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    phases: Sequence[tuple[float, float]] = (),
    floor: float | None = 0.0,
) -> str | None:
    """A curve over steps with its last point marked; it has a gap where it is not finite.

    phases: start and end of each phase on the x axis; they are numbered from 1 above the curve and switches are marked.
    floor: a value that the y axis covers in any case; None leaves that end to the data.
    """
    x, y = thin(xs, ys)
    (seen,) = np.isfinite(y).nonzero()
    if not len(seen):
        return None
    with drawing(title):
        axes = _axes(340, 208, x_label, y_label)
        low = min([np.nanmin(y), *([] if floor is None else [floor])])
        rows = ticks(low, np.nanmax(y), 4)
        scale(axes.yaxis, rows, rows[0], rows[-1])
        # The frame ends where the run ends.
        start, end = min([x[0], *(a for a, _ in phases)]), max([x[-1], *(b for _, b in phases)])
        end = end if end > start else start + 1
        scale(axes.xaxis, ticks(start, end, 4), start, end)
        axes.plot(x, y, color=BLUE, linewidth=2, gid="line")
        alone = [i for i in seen if i == seen[-1] or not {i - 1, i + 1} & set(seen)]
        axes.plot(x[alone], y[alone], "o", color=BLUE, gid="point")
        for number, (a, b) in enumerate(phases, 1):
            if number % 2 == 0:
                axes.axvspan(a, b, color=BAND, linewidth=0, zorder=0, gid="band")
            if number > 1:
                axes.axvline(a, color=SOFT, linewidth=1.3, linestyle=(0, (3, 3)), gid="switch")
            if len(phases) > 1:
                place = {"transform": axes.get_xaxis_transform(), "ha": "center", "color": BLUE, "weight": "bold"}
                axes.text((a + b) / 2, 1.03, str(number), **place)
        first, last = seen[0], seen[-1]
        words = f"{y_label} from {y[first]:.4g} at {x_label} {x[first]:.0f} to {y[last]:.4g} at {x_label} {x[last]:.0f}."
        return _svg(axes, title, words)


def histogram(
    title: str, values: Sequence[float], *, x_label: str, y_label: str, high: float | None = None
) -> str | None:
    """How often each range of values occurs, with the mean marked.

    high: the x axis ends here if no value is larger (1 for a cosine).
    """
    values = [float(v) for v in values if math.isfinite(v)]
    if not values:
        return None
    with drawing(title):
        axes = _axes(400, 270, x_label, y_label)
        top = max([*values, *([] if high is None else [high])])
        # A few percent of room keeps all-equal values from becoming a single slab as wide as the chart.
        edges = ticks(min(min(values), top - 0.02 * (abs(top) or 1)), top, 24)
        counts, _, _ = axes.hist(np.clip(values, edges[0], edges[-1]), edges, rwidth=0.92, color=BLUE, gid="bar")
        scale(axes.xaxis, ticks(edges[0], edges[-1], 5), edges[0], edges[-1])
        rows = ticks(0, max(counts), 4, whole=True)
        scale(axes.yaxis, rows, 0, rows[-1])
        mean = float(np.mean(values))
        axes.axvline(mean, color=AMBER, linewidth=2.5, gid="mean")
        side = "right" if 2 * mean > edges[0] + edges[-1] else "left"
        axes.text(mean, 1.02, f"mean {mean:.3f}", ha=side, weight="bold", transform=axes.get_xaxis_transform())
        words = f"{len(values)} values from {min(values):.3f} to {max(values):.3f}, mean {mean:.3f}."
        return _svg(axes, title, words)


def swarm(values: Sequence[float], gap: float, half: float) -> list[tuple[float, float]]:
    """Each value with a sideways shift: equal ones ``gap`` apart, closer where they would pass ``half``."""
    dots = []
    for value, n in sorted(Counter(values).items()):
        step = min(gap, 2 * half / max(n - 1, 1))
        dots += [((i - (n - 1) / 2) * step, value) for i in range(n)]
    return dots


def draw_strip(axes: Axes, groups: Mapping[str, Sequence[float]], width: float, dot: float) -> None:
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
        axes.plot([i - half, i + half], [mean, mean], color=AMBER, linewidth=0.57 * dot, solid_capstyle="butt", gid="mean")
        axes.annotate(f"{mean:.1f}", (i + half, mean), (4, 0), textcoords="offset points", va="center", weight="bold")
    axes.set_xticks(range(len(groups)), [drawable(name) for name in groups])
    axes.set_xlim(-0.5, len(groups) - 0.3)
    rows = ticks(0, max(map(max, groups.values())), 5, whole=True)
    scale(axes.yaxis, rows, 0, rows[-1])


def strip(title: str, groups: Mapping[str, Sequence[float]], *, x_label: str, y_label: str) -> str | None:
    """``draw_strip`` as a chart of its own; groups without a value are left out."""
    groups = {name: values for name, values in groups.items() if len(values)}
    if not groups:
        return None
    with drawing(title):
        axes = _axes(400, 270, x_label, y_label)
        draw_strip(axes, groups, 340, 4.4)
        means = (f"{name}: mean {np.mean(values):.1f} over {len(values)}" for name, values in groups.items())
        return _svg(axes, title, "; ".join(means) + ".")


def ranked(title: str, counts: Sequence[int], *, x_label: str, y_label: str) -> str | None:
    """Counts from the largest to the smallest as an area, with the level of an even spread; None if all are zero."""
    total, used, most = sum(counts), sum(1 for n in counts if n > 0), max(counts, default=0)
    if total == 0:
        return None
    with drawing(title):
        axes = _axes(400, 270, x_label, y_label)
        _, heights = thin(range(len(counts)), sorted(counts, reverse=True), 512)
        edges = np.linspace(0, len(counts), len(heights) + 1)
        axes.stairs(heights, edges, fill=True, color=WASH, gid="area")
        axes.stairs(heights, edges, baseline=None, color=BLUE, linewidth=2, gid="line")
        level = total / len(counts)
        axes.axhline(level, color=SOFT, linewidth=1.3, linestyle=(0, (3, 3)), gid="switch")
        above = {"xytext": (-2, 4), "textcoords": "offset points", "ha": "right", "weight": "bold"}
        axes.annotate("even use", (len(counts), level), **above)
        scale(axes.xaxis, ticks(0, len(counts), 4, whole=True), 0, len(counts))
        rows = ticks(0, most, 4, whole=True)
        scale(axes.yaxis, rows, 0, rows[-1])
        words = f"{used} of {len(counts)} used; the most used one {most} times, an even spread would be {level:.1f}."
        return _svg(axes, title, words)


def _axes(width: float, height: float, x_label: str, y_label: str) -> Axes:
    axes = Figure((width / 72, height / 72), layout="constrained").add_subplot()
    axes.set_xlabel(drawable(x_label))
    axes.set_ylabel(drawable(y_label))
    return axes


def _svg(axes: Axes, title: str, description: str) -> str:
    """The figure of the axes as an element for a page: no name space, no id that is not used, colours as variables."""
    file = io.StringIO()
    axes.figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        parent.tag = parent.tag.rpartition("}")[2]
        for child in list(parent):
            # Its rule would hold for the whole page, and nothing that we draw needs clipping.
            if child.tag.endswith(("}metadata", "}style", "}clipPath")):
                parent.remove(child)
        old = dict(parent.attrib)
        parent.attrib.clear()
        for name, value in old.items():
            name = name.rpartition("}")[2]
            if name == "id" and re.fullmatch("[a-z]+", value):
                name = "class"
            if (name, parent.tag) in (("id", "g"), ("clip-path", parent.tag)):
                continue
            if name == "style":
                value = re.sub("#[0-9a-f]{6}", lambda found: _variable(found[0]), value)
            elif name == "d":
                value = re.sub(r"(\.\d\d)\d+", r"\1", " ".join(value.split()))
            parent.set(name, value)
        if parent.tag != "text":
            parent.text = None
        parent.tail = None
    box = root.get("viewBox", "")
    root.attrib.clear()
    words = plain(f"{title}. {description}")
    root.attrib.update({"class": "chart", "viewBox": box, "role": "img", "aria-label": words})
    return ElementTree.tostring(root, encoding="unicode")


def _variable(colour: str) -> str:
    return f"var(--{VARIABLES[colour]})" if colour in VARIABLES else colour
