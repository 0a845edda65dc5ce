"""What the quickstart found, and the page that shows it: one HTML file that needs nothing else."""

from lavit.report.parts import differing
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
from lavit.report.whole import render_report, write_report

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
    "write_report",
]
