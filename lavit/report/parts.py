"""Pieces of the page that several of its sections are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from html import escape
from typing import Any

from lavit import charts
from lavit.page import percent

Curve = tuple[str, str, str, str]
"""Key of the history's rows, title, unit, and a sentence."""

Bar = tuple[str, str, float]
"""Name, style ("tokens", "encoder" or "chance"), and share; the first of a group is what the run achieved."""


def empty(words: str) -> str:
    return f'<p class="empty">{words}</p>'


def differing(words: str, other: str) -> str:
    """``words`` as HTML, with those marked that ``other`` does not have at that point."""
    a, b = words.split(), other.split()
    parts = []
    for kind, start, end, _, _ in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        text = escape(" ".join(a[start:end]))
        if text:
            parts.append(text if kind == "equal" else f"<mark>{text}</mark>")
    return " ".join(parts)


def verdict(right: bool) -> str:
    if right:
        return '<span class="verdict right">\u2713 right</span>'
    return '<span class="verdict wrong">\u2717 wrong</span>'


def bars(groups: Sequence[tuple[str, Sequence[Bar]]], head: Sequence[str], name: str) -> str:
    """A table of shares as bars: one group a question, which ``head`` names in its three columns."""
    bodies = []
    for what, group in groups:
        rows = []
        for i, (source, css, share) in enumerate(group):
            first = f'<th scope="rowgroup" rowspan="{len(group)}">{escape(what)}</th>' if i == 0 else ""
            width = 78 * min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
            number = f"<b>{percent(share)}</b>" if i == 0 else percent(share)
            rows.append(
                f'<tr>{first}<th scope="row" class="from">{source}</th><td class="bars"><div class="track">'
                f'<i class="{css}" style="width:{width:.1f}%" aria-hidden="true"></i>{number}</div></td></tr>'
            )
        bodies.append(f"<tbody>{''.join(rows)}</tbody>")
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    return (
        f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0"><table class="probe">'
        f"<thead><tr>{titles}</tr></thead>{''.join(bodies)}</table></div>"
    )


def curves(
    history: Sequence[Mapping[str, Any]], which: Sequence[Curve], spans: Sequence[tuple[float, float]] = ()
) -> str:
    """A card for each curve that the history has values of; spans: of the phases."""
    cards = []
    for key, title, unit, note in which:
        rows = [row for row in history if row.get(key) is not None]
        steps, values = [float(row["step"]) for row in rows], [float(row[key]) for row in rows]
        chart = charts.line(title, steps, values, x_label="step", y_label=unit, phases=spans)
        if chart:
            cards.append(f'<div class="card"><h3>{title}</h3><p>{note}</p>{chart}</div>')
    return f'<div class="small">{"".join(cards)}</div>' if cards else ""
