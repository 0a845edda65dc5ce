"""What the quickstart found, and the page and the figure that show it.

What draws is loaded on first use: the results alone need neither matplotlib nor jinja2.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lavit.report.result import (
    Answer,
    LanguageResult,
    Painting,
    Photo,
    PixelsResult,
    ProbeRow,
    QuickstartResult,
    Rate,
    Request,
    Scene,
    Spoken,
    Stage,
    mean_of,
    mean_tokens,
    perplexity,
    phases,
)

if TYPE_CHECKING:
    from lavit.report.figure import write_figure
    from lavit.report.page import differing, render_report, write_report

__all__ = [
    "Answer",
    "LanguageResult",
    "Painting",
    "Photo",
    "PixelsResult",
    "ProbeRow",
    "QuickstartResult",
    "Rate",
    "Request",
    "Scene",
    "Spoken",
    "Stage",
    "differing",
    "mean_of",
    "mean_tokens",
    "perplexity",
    "phases",
    "render_report",
    "write_figure",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in ("differing", "render_report", "write_figure", "write_report"):
        return getattr(import_module("lavit.report.figure" if name == "write_figure" else "lavit.report.page"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
