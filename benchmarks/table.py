"""The benchmarks' figures as a table: at the end of ``pytest benchmarks``, and for a README from pytest's JSON file.

``python -m benchmarks.table FILE.json ...`` prints Markdown. A ratio to the group's baseline, the release's way where
the release has one, is in it only where the parity of that very case, and of the baseline, held.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADING = ("implementation", "median", "quartiles", "rate", "peak memory", "against the baseline")


@dataclass(frozen=True)
class Case:
    """One implementation on one task; times in seconds of one run."""

    group: str
    implementation: str
    median: float
    quartiles: tuple[float, float]
    extra: dict[str, Any]


def cases_of(benchmarks: Iterable[dict[str, Any]]) -> list[Case]:
    """The entries of pytest-benchmark's "benchmarks"."""
    return [
        Case(
            b["group"] or b["name"],
            b["extra_info"].get("implementation") or b["param"] or b["name"],
            b["stats"]["median"],
            (b["stats"]["q1"], b["stats"]["q3"]),
            b["extra_info"],
        )
        for b in benchmarks
    ]


def grouped(cases: list[Case]) -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    return groups


def comparison(case: Case, group: list[Case]) -> str:
    """How much faster than the baseline: said only of a case whose result was right."""
    baseline = next((c for c in group if c.extra.get("baseline")), None)
    if not case.extra.get("passed"):
        parity = case.extra.get("parity")
        found = ", ".join(f"{k} {v:.3g}" for k, v in parity.items()) if isinstance(parity, dict) else parity
        return f"no parity, no ratio: {found}" if found else "no parity, no ratio"
    if baseline is None:
        return ""
    if case is baseline:
        return "1 (baseline)"
    return f"{baseline.median / case.median:.3g}×" if baseline.extra.get("passed") else "no parity of the baseline"


def row(case: Case, group: list[Case]) -> tuple[str, ...]:
    low, high = case.quartiles
    peak = case.extra.get("peak_bytes")
    eager = "" if case.extra.get("timed") in ("graph", "eager", None) else " (launched by the host)"
    return (
        case.implementation,
        _time(case.median) + eager,
        f"{_time(low)} to {_time(high)}",
        _rate(case.extra) + _limit(case.extra),
        "not seen" if peak is None else _bytes(peak),
        comparison(case, group),
    )


def text(cases: list[Case]) -> str:
    """Aligned, for a terminal: one block a group."""
    blocks = []
    for name, group in grouped(cases).items():
        lines = [HEADING, *(row(case, group) for case in group)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEADING))]
        aligned = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
        blocks.append("\n  ".join([name, *aligned]))
    return "\n\n".join(blocks)


def markdown(report: dict[str, Any]) -> str:
    """The same from pytest-benchmark's JSON, with the machine that it was measured on."""
    machine, commit = report["machine_info"], report["commit_info"].get("id")
    driver = f", driver {machine['driver']}" if machine.get("driver") else ""
    versions = f"torch {machine.get('torch')}, triton {machine.get('triton')}"
    blocks = [f"{machine.get('device')}{driver}, {machine.get('threads')} threads, {versions}, commit {commit}"]
    for name, group in grouped(cases_of(report["benchmarks"])).items():
        lines = [("**" + name + "**", *HEADING[1:]), ("---",) * len(HEADING), *(row(case, group) for case in group)]
        blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(blocks)


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    scale, unit = next(((s, u) for s, u in units if value >= s), units[-1])
    return f"{value / scale:.3g} {unit}"


def _time(seconds: float) -> str:
    return _scaled(seconds, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")))


def _bytes(count: float) -> str:
    return _scaled(count, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")))


def _rate(extra: dict[str, Any]) -> str:
    if "scores_per_second" in extra:
        return f"{extra['scores_per_second']:.3g} scores/s"
    if "gigabytes_per_second" in extra:
        return f"{extra['gigabytes_per_second']:.3g} GB/s"
    for unit in ("samples", "tokens"):
        if f"{unit}_per_second" in extra:
            full = f", {100 * extra['fill_rate']:.4g} % full" if "fill_rate" in extra else ""
            return f"{extra[f'{unit}_per_second']:.3g} {unit}/s{full}"
    return ""


def _limit(extra: dict[str, Any]) -> str:
    if "limit_reached" not in extra:
        return ""
    share = f"{100 * extra['limit_reached']:.3g} % of the {extra['limit']} limit"
    return f", {share}" if _rate(extra) else share


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description="Figures as a Markdown table.")
    written_by = "written by pytest benchmarks --benchmark-only --benchmark-json FILE"
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help=f"{written_by}; several of one machine")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table there, too")
    options = parser.parse_args(argv)
    reports = [json.loads(file.read_text()) for file in options.files]
    for file, report in zip(options.files, reports, strict=True):
        if "benchmarks" not in report or "machine_info" not in report:
            parser.error(f"{file}: expected what --benchmark-json writes, with machine_info and benchmarks")
    whole = reports[0] | {"benchmarks": [one for report in reports for one in report["benchmarks"]]}
    text = markdown(whole)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
