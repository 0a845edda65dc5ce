"""The numbers of a run: for results.json, and as the lines that end it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from statistics import fmean
from typing import Any

from lavit.report import LanguageResult, PixelsResult, QuickstartResult, Rate, mean_tokens


def summary(result: QuickstartResult) -> dict[str, Any]:
    """The numbers of a run without its pictures, ready for JSON."""
    return {
        "command": result.command,
        "seed": result.seed,
        "device": result.device,
        "threads": result.threads,
        "versions": result.versions,
        "seconds": round(result.seconds, 1),
        "stages": {stage.name: round(stage.seconds, 1) for stage in result.stages},
        "parameters": result.parameters,
        "patches": math.prod(result.grid),
        "cosine": fmean(result.cosines),
        "tokens": fmean(n for group in result.content.values() for n in group),
        "tokens_by_objects": {str(k): fmean(group) for k, group in result.content.items()},
        "codes_used": sum(n > 0 for n in result.code_counts),
        "codes": len(result.code_counts),
        "probe": [asdict(row) for row in result.probe],
        "photographs": [
            {"name": photo.name, "source": photo.source, "tokens": photo.tokens, "cosine": photo.cosine}
            for photo in result.photos
        ],
        "length": result.length,
        "language": _language(result.language) if result.language else None,
        "pixels": _pixels(result.pixels) if result.pixels else None,
        "encoder_history": result.encoder_history,
        "history": result.history,
    }


def _language(result: LanguageResult) -> dict[str, Any]:
    kinds = {kind: rate for kind, rate in result.answers.items() if kind != "mean"}
    return {
        "captions": {
            "scenes": result.scenes,
            **_values(result.captions),
            "readable": result.readable,
            "chance": _values(result.captions, "chance"),
        },
        "vqa": {
            "questions": result.questions,
            "mean": result.answers["mean"].model,
            "by_kind": _values(kinds),
            "chance": _values(result.answers, "chance"),
        },
        "images": {"scenes": result.scenes, **_drawn(result.images, result.tokens)},
        "edits": _drawn(result.edits, result.edited_tokens) if result.edits else None,
        **_training(result),
    }


def _pixels(result: PixelsResult) -> dict[str, Any]:
    return {
        "scenes": result.scenes,
        "ways": {
            way: {**_values(rates), "unclear": result.unclear[way], "chance": _values(rates, "chance")}
            for way, rates in result.ways.items()
        },
        **_training(result),
    }


def _training(result: LanguageResult | PixelsResult) -> dict[str, Any]:
    return {
        "parameters": result.parameters,
        "steps": result.steps,
        "last": result.history[-1] if result.history else None,
        "seconds": {name: round(seconds, 1) for name, seconds in result.seconds.items()},
        "settings": result.settings,
    }


def _drawn(rates: Mapping[str, Rate], tokens: dict[str, float]) -> dict[str, Any]:
    beside = {figure: _values(rates, figure) for figure in ("chance", "ceiling")}
    return {**_values(rates), **beside, "tokens": tokens}


def _values(rates: Mapping[str, Rate], figure: str = "model") -> dict[str, float]:
    return {name: getattr(rate, figure) for name, rate in rates.items()}


def summary_lines(result: QuickstartResult) -> Iterator[str]:
    """What a run says at its end: the figures, each beside what guessing has."""
    tokens = ", ".join(f"{mean:.1f} for {k}" for k, mean in mean_tokens(result.content).items())
    used = sum(n > 0 for n in result.code_counts)
    yield f"reconstruction cosine {fmean(result.cosines):.3f}; {used} codes in use"
    yield f"tokens by number of objects: {tokens} (of {math.prod(result.grid)} patches)"
    for row in result.probe:
        yield (
            f"{row.what}: {row.tokens:.3f} read from the tokens, {row.encoder:.3f} from the encoder, "
            f"{row.chance:.3f} by chance"
        )
    if result.language is not None:
        yield from _language_lines(result.language)
    if result.pixels is not None:
        for way, rates in result.pixels.ways.items():
            there, right = rates["recall"], rates["scene"]
            yield (
                f"Painted from {way}: {there.model:.3f} of the objects there, {there.chance:.3f} by chance; every cell "
                f"right {right.model:.3f}, {right.chance:.3f} by chance"
            )


def _language_lines(result: LanguageResult) -> Iterator[str]:
    said, answers, images = result.captions["exact"], result.answers, result.images
    yield f"Captions word for word right: {said.model:.3f}, {said.chance:.3f} by chance"
    kinds = ", ".join(f"{kind} {rate.model:.3f}" for kind, rate in answers.items() if kind != "mean")
    yield f"Answers right: {answers['mean'].model:.3f} ({kinds}), {answers['mean'].chance:.3f} by chance"
    for name, what in (("recall", "objects there"), ("scene", "every cell right")):
        rate = images[name]
        yield (
            f"Images asked for, {what}: {rate.model:.3f} read from the tokens drawn, {rate.ceiling:.3f} from those of "
            f"the true images, {rate.chance:.3f} by chance"
        )
    if result.edits:
        there, right = result.edits["recall"], result.edits["scene"]
        yield (
            f"Changes asked for: {there.model:.3f} of the objects there, {there.chance:.3f} by chance; every cell "
            f"right {right.model:.3f}, {right.ceiling:.3f} from the true images' tokens, {right.chance:.3f} by chance"
        )
    yield f"Tokens an image: {result.tokens['drawn']:.1f} drawn, {result.tokens['true']:.1f} of the true images"
