"""What `accelerate` did, for a reader."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class Replaced:
    """name: of the module in the model, "" for the model itself. part: what it was recognised as. methods: replaced."""

    name: str
    part: str
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Left:
    """A module whose names are those of a known part and which keeps its own methods, and why."""

    name: str
    part: str
    reason: str


@dataclass(frozen=True)
class Report:
    """policy: "exact" or "fast". restored: what was replaced has its own methods again.

    ``str()`` is a table, modules of a list of blocks together.
    """

    policy: str
    replaced: tuple[Replaced, ...] = ()
    left: tuple[Left, ...] = ()
    restored: bool = False

    def __str__(self) -> str:
        done = [(entry.name, f"{entry.part}: {', '.join(entry.methods)}") for entry in self.replaced]
        what = "restored, accelerated until now by" if self.restored else "accelerated,"
        lines = [f"{what} policy {self.policy!r}", *_grouped(done)]
        if self.left:
            lines += ["left as they are", *_grouped([(e.name, f"{e.part}: {e.reason}") for e in self.left])]
        return "\n".join(lines)


def _grouped(entries: list[tuple[str, str]]) -> list[str]:
    """Lines of "name  text"; names that differ by numbers only are one line, with how many they are."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, text in entries:
        groups[re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name), text].append(name)
    shown = [
        (names[0] or "(the model)" if len(names) == 1 else f"{pattern} ({len(names)})", text)
        for (pattern, text), names in groups.items()
    ]
    width = max(len(name) for name, _ in shown)
    return [f"  {name:{width}}  {text}" for name, text in shown]
