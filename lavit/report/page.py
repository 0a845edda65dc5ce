"""The page of a run: one HTML file that needs nothing else. What it says stands in the templates."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from statistics import correlation
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from lavit.files import atomic_write
from lavit.report import format, plots
from lavit.report.result import (
    LanguageResult,
    Photo,
    PixelsResult,
    QuickstartResult,
    Rate,
    Scene,
    mean_of,
    mean_tokens,
    perplexity,
    phases,
)
from lavit.report.token_map import draw_token_map

Curves = tuple[tuple[str, str, str, str], ...]
"""Of each curve the key of the history's rows, title, unit, and a sentence."""

SPEED = "Throughput of the training loop."
ENCODER: Curves = (
    ("loss", "Encoder loss", "loss", "Of its pre-training; frozen afterwards."),
    ("accuracy", "Encoder accuracy", "share right", "On the question it is pre-trained with."),
)
TOKENIZER: Curves = (
    ("loss", "Loss", "loss", "The sum of the parts, as it is minimised."),
    ("reconstruction_loss", "Reconstruction", "1 \u2212 cosine", "Of the features rebuilt from the tokens."),
    ("ratio_loss", "Keep-rate penalty", "squared gap", "Squared gap of the keep rate to its target."),
    ("commitment_loss", "Commitment", "squared distance", "Of a vector to the code that stands for it."),
    ("keep_rate", "Keep rate", "share of patches", "How much of an image becomes tokens."),
    ("codes_used", "Codes in use", "codes", "Different codes seen lately."),
    ("perplexity", "Perplexity", "codes", "Evenly used codes that would carry as much."),
    ("images_per_second", "Speed", "images/s", SPEED),
)
LANGUAGE: Curves = (
    ("loss", "Loss", "loss", "Of all tokens that are predicted, words and codes."),
    ("text_loss", "Words", "nats a token", "Of captions and answers."),
    ("image_loss", "Codes", "nats a token", "Of the tokens of images."),
    ("tokens_per_second", "Speed", "tokens/s", f"{SPEED[:-1]}, nothing of it padding."),
)
PIXELS: Curves = (
    ("loss", "Loss", "loss", "Squared error of what the U-Net predicts."),
    ("images_per_second", "Speed", "images/s", SPEED),
)
RATES = {"scene": "every cell right", "recall": "objects there", "cell": "cells right"}


def write_report(result: QuickstartResult, path: str | os.PathLike[str]) -> None:
    """Write the page of a run to ``path``: one HTML file with everything in it. Its folder must exist."""
    with atomic_write(path, "w") as file:
        file.write(render_report(result))


def render_report(result: QuickstartResult) -> str:
    """The page as text. Parts of the result that are empty become a sentence that says so."""
    means = mean_tokens(result.content)
    columns = {str(objects): result.content[objects] for objects in means}
    later = [stage for stage in (result.language, result.pixels) if stage]
    return _environment().get_template("page.html.j2").render(
        result=result,
        patches=math.prod(result.grid),
        tokens=[n for group in result.content.values() for n in group],
        means=means,
        trend=_trend(result.content),
        content_chart=_chart(
            plots.strip(
                "Tokens against the number of objects", columns, x_label="objects in the scene", y_label="tokens"
            )
        ),
        cosine_chart=_chart(
            plots.histogram(
                "Reconstruction cosine of the held-out scenes",
                result.cosines,
                x_label="cosine",
                y_label="scenes",
                high=1.0,
            )
        ),
        code_chart=_chart(
            plots.ranked("Use of the codes", result.code_counts, x_label="codes, by frequency", y_label="uses")
        ),
        probe=[(row.what, Rate(row.tokens, row.chance, row.encoder)) for row in result.probe],
        spoken_rates=_language_rates(result.language) if result.language else [],
        painted_rates=_painted_rates(result.pixels) if result.pixels else [],
        spans=phases(result.history),
        learning=_learning(result),
        facts=[
            ("seed", result.seed),
            ("length", result.length),
            *((name, _words(value)) for stage in later for name, value in stage.settings.items()),
            *result.versions.items(),
        ],
        parameters=dict(item for part in (result, *later) for item in part.parameters.items()),
    )  # fmt: skip


def differing(words: str, other: str) -> Markup:
    """``words`` as HTML, with those marked that ``other`` does not have at that point."""
    a, b = format.plain(words).split(), format.plain(other).split()
    parts = []
    for kind, start, end, _, _ in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        text = escape(" ".join(a[start:end]))
        if text:
            parts.append(text if kind == "equal" else Markup("<mark>{}</mark>").format(text))
    return Markup(" ").join(parts)


@cache
def _environment() -> Environment:
    """Whatever a template shows is escaped, and changes nothing of what stands around it."""
    made = Environment(
        loader=PackageLoader("lavit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: format.plain(value) if type(value) is str else value,
    )
    made.filters.update(
        {f.__name__: f for f in (format.integer, format.decimal, format.percent, format.duration, mean_of, perplexity)}
    )
    made.tests["finite"] = math.isfinite
    made.globals.update(differing=differing, embed=_embed, token_map=_token_map)
    return made


class Embedded(NamedTuple):
    source: str
    width: int
    height: int


def _embed(image: np.ndarray | Image.Image, photograph: bool = False) -> Embedded:
    """The pixels as a URI: PNG, or JPEG for a photograph (a tenth of the size, no visible loss)."""
    image, file = image if isinstance(image, Image.Image) else Image.fromarray(image), io.BytesIO()
    if photograph:
        image.convert("RGB").save(file, "JPEG", quality=90, subsampling=0, optimize=True)
    else:
        image.save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return Embedded(f"data:image/{'jpeg' if photograph else 'png'};base64,{data}", image.width, image.height)


def _token_map(of: Scene | Photo, grid: tuple[int, int]) -> Image.Image:
    return draw_token_map(Image.fromarray(of.image), of.keep, grid)


def _chart(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)  # made by plots, which escapes


def _trend(content: Mapping[int, Sequence[int]]) -> str:
    """Whether more objects get more tokens, as a sentence; empty with fewer than two numbers of objects."""
    means = mean_tokens(content)
    if len(means) < 2:
        return ""
    listed = ", ".join(f"{value:.1f} for {objects}" for objects, value in means.items())
    values, pairs = list(means.values()), [(objects, n) for objects, tokens in content.items() for n in tokens]
    follows = all(a < b for a, b in zip(values[:-1], values[1:], strict=True))
    trend = "More objects get more tokens" if follows else "The number of tokens does not rise with every object"
    if len({n for _, n in pairs}) > 1:  # a correlation with a constant does not exist
        listed += f"; correlation {format.decimal(correlation(*zip(*pairs, strict=True)), 2)}"
    return f"{trend}: {listed}."


def _learning(result: QuickstartResult) -> list[tuple[str, list[tuple[str, str, Markup]]]]:
    """Each network that learned, with title, sentence and chart of each of its curves that has a value."""
    groups: list[tuple[str, Sequence[Mapping[str, Any]], Curves]] = [
        ("Encoder", result.encoder_history, ENCODER),
        ("Tokenizer", result.history, TOKENIZER),
        ("Language model", result.language.history if result.language else [], LANGUAGE),
        ("U-Net", result.pixels.history if result.pixels else [], PIXELS),
    ]
    spans = [(start, end) for _, start, end in phases(result.history)]
    found = []
    for network, history, curves in groups:
        cards = []
        for key, title, unit, note in curves:
            rows = [(float(row["step"]), float(row[key])) for row in history if row.get(key) is not None]
            steps, values = zip(*rows, strict=True) if rows else ((), ())
            chart = plots.line(
                f"{network}: {title}",
                steps,
                values,
                x_label="step",
                y_label=unit,
                phases=spans if curves is TOKENIZER else (),
            )
            if chart:
                cards.append((title, note, Markup(chart)))
        if cards:
            found.append((network, cards))
    return found


def _language_rates(result: LanguageResult) -> list[tuple[str, Rate]]:
    answers = {kind: rate for kind, rate in result.answers.items() if kind != "mean"}
    rows: list[tuple[str, Rate | None]] = [
        ("Captions word for word right", result.captions.get("exact")),
        ("Objects named in captions", result.captions.get("recall")),
        ("Answers right", result.answers.get("mean")),
        *((f"Answers: {kind}", rate) for kind, rate in answers.items()),
        *((f"Images asked for: {what}", result.images.get(name)) for name, what in RATES.items()),
        *((f"Changes asked for: {what}", result.edits.get(name)) for name, what in RATES.items()),
    ]
    return [(what, rate) for what, rate in rows if rate is not None]


def _painted_rates(result: PixelsResult) -> list[tuple[str, Rate]]:
    return [
        (f"Painted from {way}: {what}", rates[name])
        for way, rates in result.ways.items()
        for name, what in RATES.items()
        if name in rates
    ]


def _words(value: Any) -> str:
    """A setting, or settings within it, as words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items())
    return str(value)
