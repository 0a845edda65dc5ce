"""The page of a run: one HTML file that needs nothing else. What it says stands in the templates."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from statistics import correlation
from typing import Any

from lavit.data.atomic_write import atomic_write
from lavit.report import format, plots
from lavit.report.html import differing as differing
from lavit.report.html import embed as embed
from lavit.report.html import environment
from lavit.report.result import QuickstartResult, Rate, mean_tokens, phases

CURVES: dict[str, list[tuple[str, str, str, str]]] = {
    "Encoder": [
        ("loss", "Encoder loss", "loss", "Of its pre-training; frozen afterwards."),
        ("accuracy", "Encoder accuracy", "share right", "On the question it is pre-trained with."),
    ],
    "Tokenizer": [
        ("loss", "Loss", "loss", "The sum of the parts, as it is minimised."),
        ("reconstruction_loss", "Reconstruction", "1 \u2212 cosine", "Of the features rebuilt from the tokens."),
        ("ratio_loss", "Keep-rate penalty", "squared gap", "Squared gap of the keep rate to its target."),
        ("commitment_loss", "Commitment", "squared distance", "Of a vector to the code that stands for it."),
        ("keep_rate", "Keep rate", "share of patches", "How much of an image becomes tokens."),
        ("codes_used", "Codes in use", "codes", "Different codes seen lately."),
        ("perplexity", "Perplexity", "codes", "Evenly used codes that would carry as much."),
        ("images_per_second", "Speed", "images/s", "Throughput of the training loop."),
    ],
    "Language model": [
        ("loss", "Loss", "loss", "Of all tokens that are predicted, words and codes."),
        ("text_loss", "Words", "nats a token", "Of captions and answers."),
        ("image_loss", "Codes", "nats a token", "Of the tokens of images."),
        ("tokens_per_second", "Speed", "tokens/s", "Throughput of the training loop, nothing of it padding."),
    ],
    "U-Net": [
        ("loss", "Loss", "loss", "Squared error of what the U-Net predicts."),
        ("images_per_second", "Speed", "images/s", "Throughput of the training loop."),
    ],
}
"""Of each curve of each network the key of the history's rows, title, unit, and a sentence."""


def write_report(result: QuickstartResult, path: str | os.PathLike[str]) -> None:
    """Write the page of a run to ``path``: one HTML file with everything in it. Its folder must exist."""
    with atomic_write(path, "w") as file:
        file.write(render_report(result))


def render_report(result: QuickstartResult) -> str:
    """The page as text. Parts of the result that are empty become a sentence that says so."""
    later = [stage for stage in (result.language, result.pixels) if stage]
    return environment().get_template("page.html.j2").render(
        result=result,
        language=result.language,
        pixels=result.pixels,
        patches=math.prod(result.grid),
        means=mean_tokens(result.content),
        trend=_trend(result.content),
        rates=_rates(result),
        phases=phases(result.history),
        learning={network: cards for network in CURVES if (cards := _curves(result, network))},
        settings=[(name, _words(value)) for stage in later for name, value in stage.settings.items()],
        parameters={name: count for part in (result, *later) for name, count in part.parameters.items()},
    )  # fmt: skip


def _curves(result: QuickstartResult, network: str) -> list[tuple[str, str, str]]:
    """Title, sentence and chart of each curve of a network that has a value."""
    stages = {"Encoder": result.encoder_history, "Tokenizer": result.history}
    stages["Language model"] = result.language.history if result.language else []
    stages["U-Net"] = result.pixels.history if result.pixels else []
    spans = [(start, end) for _, start, end in phases(result.history)] if network == "Tokenizer" else []
    found = []
    for key, title, unit, note in CURVES[network]:
        rows = [(float(row["step"]), float(row[key])) for row in stages[network] if row.get(key) is not None]
        steps, values = zip(*rows, strict=True) if rows else ((), ())
        if chart := plots.line(f"{network}: {title}", steps, values, "step", unit, spans, floor=0):
            found.append((title, note, chart))
    return found


def _rates(result: QuickstartResult) -> dict[str, list[tuple[str, Rate]]]:
    """Of each part of the run what was judged, and how it did."""
    kinds = {"scene": "every cell right", "recall": "objects there", "cell": "cells right"}
    rows: dict[str, list[tuple[str, Rate | None]]] = {"language": [], "pixels": []}
    rows["probe"] = [(row.what, Rate(row.tokens, row.chance, row.encoder)) for row in result.probe]
    if of := result.language:
        exact, recall, mean = of.captions.get("exact"), of.captions.get("recall"), of.answers.get("mean")
        rows["language"] = [("Captions word for word right", exact), ("Objects named in captions", recall)]
        rows["language"] += [("Answers right", mean), *((f"Answers: {kind}", of.answers[kind]) for kind in of.answers)]
        rows["language"] += [(f"Images asked for: {kinds[kind]}", of.images.get(kind)) for kind in kinds]
        rows["language"] += [(f"Changes asked for: {kinds[kind]}", of.edits.get(kind)) for kind in kinds]
    for way, rates in result.pixels.ways.items() if result.pixels else ():
        rows["pixels"] += [(f"Painted from {way}: {kinds[kind]}", rates.get(kind)) for kind in kinds]
    return {part: [(what, rate) for what, rate in rows[part] if rate and what != "Answers: mean"] for part in rows}


def _trend(content: Mapping[int, Sequence[int]]) -> str:
    """Whether more objects get more tokens, as a sentence; empty with fewer than two numbers of objects."""
    means = mean_tokens(content)
    if len(means) < 2:
        return ""
    listed = ", ".join(f"{value:.1f} for {objects}" for objects, value in means.items())
    values, pairs = list(means.values()), [(objects, n) for objects, tokens in content.items() for n in tokens]
    follows = all(a < b for a, b in zip(values[:-1], values[1:], strict=True))
    if len({n for _, n in pairs}) > 1:  # a correlation with a constant does not exist
        listed += f"; correlation {format.decimal(correlation(*zip(*pairs, strict=True)), 2)}"
    trend = "More objects get more tokens" if follows else "The number of tokens does not rise with every object"
    return f"{trend}: {listed}."


def _words(value: Any) -> str:
    """A setting, or settings within it, as words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items())
    return str(value)
