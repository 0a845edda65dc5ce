"""Small charts as inline SVG: text out, no plotting library, coloured by the page's style sheet.

Every chart scales with its box (``viewBox``), says its content in words to screen readers and draws with classes
(``axis``, ``grid``, ``mark``, ``line``, ``area``, ``bar``, ``dots``, ``box``, ``mean``, ``band``, ``switch``) that the
page colours for a light and a dark scheme. Values that are not finite are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import fmean, quantiles

THIN = "\u202f"
"""Narrow space that does not break: between thousands, and between a number and its unit."""


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values that cover ``low`` to ``high``: about ``wanted`` steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise ValueError(f"low, high: expected finite low <= high, got {low} and {high}")
    span = high - low
    if span <= max(abs(low), abs(high)) * 1e-9 or span < 1e-12:  # one value, but for rounding
        span = abs(high) if abs(high) > 1e-12 else 1.0
        high = low + span
    raw = span / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def label(value: float, step: float) -> str:
    """A tick's text: as many decimals as its step needs, thousands apart; powers of ten for the very small."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals > 4:
        return f"{value:.1g}".replace("-", "\u2212")
    return f"{value:,.{decimals}f}".replace(",", THIN).replace("-", "\u2212")


def labels(values: Sequence[float]) -> dict[float, str]:
    """The texts of evenly spaced ticks."""
    step = values[1] - values[0] if len(values) > 1 else abs(values[0]) or 1.0
    return {value: label(value, step) for value in values}


def thin(xs: Sequence[float], ys: Sequence[float], most: int = 240) -> tuple[list[float], list[float]]:
    """The finite points of a curve; if there are more than ``most``, the means of ``most`` equal groups."""
    points = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if len(points) > most:
        bounds = [len(points) * i // most for i in range(most + 1)]
        groups = [points[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        points = [(fmean(x for x, _ in g), fmean(y for _, y in g)) for g in groups]
    return [x for x, _ in points], [y for _, y in points]


@dataclass
class Plot:
    """One chart under construction: a frame with two linear scales, to which SVG parts are added."""

    title: str
    description: str
    xs: list[float]
    ys: list[float]
    width: int = 400
    height: int = 250
    left: int = 0
    right: int = 12
    top: int = 14
    bottom: int = 44
    parts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Room for the name of the vertical axis and its longest number.
        self.left = self.left or 31 + 7 * max(map(len, labels(self.ys).values()))

    def x(self, value: float) -> float:
        share = (value - self.xs[0]) / (self.xs[-1] - self.xs[0])
        return self.left + share * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        share = (value - self.ys[0]) / (self.ys[-1] - self.ys[0])
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    def add(self, part: str) -> None:
        self.parts.append(part)

    def text(self, x: float, y: float, words: str, anchor: str = "middle", css: str = "") -> None:
        style = f' class="{css}"' if css else ""
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(words)}</text>')

    def rect(self, css: str, x: float, y: float, width: float, height: float) -> None:
        self.add(f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>')

    def vertical(self, value: float, css: str) -> None:
        x = self.x(value)
        self.add(f'<path class="{css}" d="M{x:.1f} {self.top}V{self.height - self.bottom}"/>')

    def axes(
        self, x_label: str, y_label: str, x_names: Mapping[float, str], y_names: Mapping[float, str] | None = None
    ) -> None:
        """Horizontal grid lines with their values or ``y_names``, the base line, tick texts and both labels."""
        base, end = self.height - self.bottom, self.width - self.right
        for value, name in (y_names or labels(self.ys)).items():
            y = self.y(value)
            self.add(f'<path class="grid" d="M{self.left} {y:.1f}H{end}"/>')
            self.text(self.left - 7, y + 4, name, "end")
        self.add(f'<path class="axis" d="M{self.left} {base}H{end}"/>')
        for value, name in x_names.items():
            # The outermost texts would be cut in half at the border of the picture.
            anchor = "end" if self.x(value) > end - 10 and len(name) > 3 else "middle"
            self.text(self.x(value) + (4 if anchor == "end" else 0), base + 17, name, anchor)
        self.text((self.left + end) / 2, self.height - 8, x_label, css="name")
        middle = (self.top + base) / 2
        turned = f"translate(12 {middle:.1f}) rotate(-90)"
        self.add(f'<text class="name" text-anchor="middle" transform="{turned}">{escape(y_label)}</text>')

    def svg(self) -> str:
        words = escape(f"{self.title}. {self.description}")
        head = f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{words}">'
        return "".join([head, *self.parts, "</svg>"])


def path(points: Sequence[tuple[float, float]]) -> str:
    """The ``d`` of a polyline."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def line(
    title: str,
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    x_label: str,
    y_label: str,
    phases: Sequence[tuple[float, float]] = (),
    floor: float | None = 0.0,
    ceiling: float | None = None,
) -> str | None:
    """A curve over steps, or None if it has no finite point.

    phases: start and end of each phase on the x axis; they are numbered from 1 above the curve and switches are marked.
    floor, ceiling: values that the y axis covers in any case; None leaves that end to the data.
    """
    xs, ys = thin(xs, ys)
    if not xs:
        return None
    low, high = min([*ys, *([] if floor is None else [floor])]), max([*ys, *([] if ceiling is None else [ceiling])])
    x_low, x_high = min([xs[0], *(a for a, _ in phases)]), max([xs[-1], *(b for _, b in phases)])
    description = f"{y_label} from {ys[0]:.4g} at {x_label} {xs[0]:.0f} to {ys[-1]:.4g} at {x_label} {xs[-1]:.0f}."
    y_ticks = ticks(low, high, 4)
    # The frame ends where the run ends; the ticks are the round values inside it.
    frame = [x_low, x_high if x_high > x_low else x_low + 1]
    names = labels([v for v in ticks(frame[0], frame[1], 4) if frame[0] <= v <= frame[1]])
    plot = Plot(title, description, frame, y_ticks, 340, 208, top=24)
    for number, (start, end) in enumerate(phases, 1):
        a, b = plot.x(start), plot.x(end)
        if number % 2 == 0:
            plot.rect("band", a, plot.top, b - a, plot.height - plot.bottom - plot.top)
        if len(phases) > 1:
            plot.text((a + b) / 2, plot.top - 8, str(number), css="phase")
    plot.axes(x_label, y_label, names)
    for start, _ in phases[1:]:
        plot.vertical(start, "switch")
    points = [(plot.x(x), plot.y(y)) for x, y in zip(xs, ys, strict=True)]
    if len(points) > 1:
        plot.add(f'<path class="line" d="{path(points)}"/>')
    plot.add(f'<circle class="mark" cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="3"/>')
    return plot.svg()


def histogram(
    title: str, values: Sequence[float], *, x_label: str, y_label: str, high: float | None = None
) -> str | None:
    """How often each range of values occurs, with the mean marked, or None without a finite value.

    high: the x axis ends here if no value is larger (1 for a cosine).
    """
    values = [float(v) for v in values if math.isfinite(v)]
    if not values:
        return None
    top = max([*values, *([] if high is None else [high])])
    # A few percent of room keeps all-equal values from becoming a single slab as wide as the chart.
    edges = ticks(min(min(values), top - 0.02 * (abs(top) or 1)), top, 24)
    step = edges[1] - edges[0]
    counts = [0] * (len(edges) - 1)
    for v in values:
        counts[min(max(int((v - edges[0]) / step + 1e-9), 0), len(counts) - 1)] += 1
    mean = fmean(values)
    text = f"{len(values)} values from {min(values):.3f} to {max(values):.3f}, mean {mean:.3f}."
    plot = Plot(title, text, [edges[0], edges[-1]], ticks(0, max(counts), 4), height=270, top=26)
    inside = [v for v in ticks(edges[0], edges[-1], 5) if edges[0] - step / 2 <= v <= edges[-1] + step / 2]
    plot.axes(x_label, y_label, labels(inside))
    for edge, n in zip(edges, counts, strict=False):
        if n:
            a, b, y = plot.x(edge), plot.x(edge + step), plot.y(n)
            plot.rect("bar", a + 0.7, y, b - a - 1.4, plot.y(0) - y)
    plot.vertical(mean, "mean")
    right = plot.x(mean) > plot.width / 2
    side, anchor = (-6, "end") if right else (6, "start")
    plot.text(plot.x(mean) + side, plot.top - 4, f"mean {mean:.3f}", anchor, "strong")
    return plot.svg()


def swarm(values: Sequence[float], gap: float, half: float) -> list[tuple[float, float]]:
    """Each value with a sideways shift: equal ones ``gap`` apart, closer where they would pass ``half``."""
    dots = []
    for value, n in sorted(Counter(values).items()):
        step = min(gap, 2 * half / max(n - 1, 1))
        dots += [((i - (n - 1) / 2) * step, value) for i in range(n)]
    return dots


def strip(title: str, groups: Mapping[str, Sequence[float]], *, x_label: str, y_label: str) -> str | None:
    """Every value as a dot, one column a group, with quartiles as a box and the mean as a line; None without values.

    Equal values lie side by side, so that the width of a column shows how often they occur.
    """
    groups = {name: values for name, values in groups.items() if len(values)}
    if not groups:
        return None
    means = {name: fmean(values) for name, values in groups.items()}
    text = "; ".join(f"{name}: mean {means[name]:.1f} over {len(values)}" for name, values in groups.items()) + "."
    y_ticks = ticks(0, max(max(values) for values in groups.values()), 5)
    plot = Plot(title, text, [0.5, len(groups) + 0.5], y_ticks, height=270, right=34)
    plot.axes(x_label, y_label, {i: name for i, name in enumerate(groups, 1)})
    column = (plot.width - plot.left - plot.right) / len(groups)
    for i, (name, values) in enumerate(groups.items(), 1):
        x, half = plot.x(i), min(column * 0.38, 60)
        first, _, third = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
        y, height = plot.y(third), plot.y(first) - plot.y(third)
        plot.rect("box", x - half, y, 2 * half, height)
        dots = [f"M{x + shift:.1f} {plot.y(value):.1f}h0" for shift, value in swarm(values, 5.0, half - 4)]
        # A line of no length with round ends is a dot: one element for thousands of them.
        plot.add(f'<path class="dots" d="{"".join(dots)}"/>')
        y = plot.y(means[name])
        plot.add(f'<path class="mean" d="M{x - half:.1f} {y:.1f}H{x + half:.1f}"/>')
        plot.text(x + half + 4, y + 4, f"{means[name]:.1f}", "start", "strong")
    return plot.svg()


def ranked(title: str, counts: Sequence[int], *, x_label: str, y_label: str) -> str | None:
    """Counts from the largest to the smallest as an area, with the level of an even spread; None if all are zero."""
    total, used = sum(counts), sum(1 for n in counts if n > 0)
    if total == 0:
        return None
    ordered = sorted(counts, reverse=True)
    ranks, heights = thin(range(1, len(ordered) + 1), ordered, 512)
    level = total / len(counts)
    text = f"{used} of {len(counts)} used; the most used one {ordered[0]} times, an even spread would be {level:.1f}."
    plot = Plot(title, text, [0, len(counts)], ticks(0, ordered[0], 4), height=270)
    plot.axes(x_label, y_label, labels([v for v in ticks(0, len(counts), 4) if v <= len(counts)]))
    edges = [0.0, *((a + b) / 2 for a, b in zip(ranks[:-1], ranks[1:], strict=True)), float(len(counts))]
    outline = []
    for a, b, n in zip(edges[:-1], edges[1:], heights, strict=True):
        outline += [(plot.x(a), plot.y(n)), (plot.x(b), plot.y(n))]
    base = plot.y(0)
    plot.add(f'<path class="area" d="{path([(plot.x(0), base), *outline, (plot.x(len(counts)), base)])}Z"/>')
    plot.add(f'<path class="line" d="{path(outline)}"/>')
    even = plot.y(level)
    plot.add(f'<path class="switch" d="M{plot.left} {even:.1f}H{plot.width - plot.right}"/>')
    plot.text(plot.width - plot.right - 2, even - 6, "even use", "end", "strong")
    return plot.svg()
