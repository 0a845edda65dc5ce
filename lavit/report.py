"""What the quickstart found, and the page that shows it: one HTML file that needs nothing else."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from html import escape
from itertools import groupby
from statistics import correlation, fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lavit import charts
from lavit.files import atomic_write
from lavit.page import (
    decimal,
    document,
    duration,
    image_tag,
    integer,
    percent,
    section,
    table,
)
from lavit.tokenmap import draw_token_map

if TYPE_CHECKING:
    from lavit.kernels.dispatch import Choice


@dataclass
class Stage:
    """A part of the run, with its wall-clock seconds and a sentence on what it did."""

    name: str
    seconds: float
    note: str = ""


@dataclass
class Scene:
    """A held-out scene of the shapes world.

    image: uint8 (H, W, 3). keep: bool (N,) kept patches in raster order. tokens: how many codes describe it.
    cosine: mean cosine of reconstructed and true features. read_back: the caption that the probe reads from the tokens.
    """

    image: np.ndarray
    keep: np.ndarray
    caption: str
    tokens: int
    cosine: float
    read_back: str
    correct: bool


@dataclass
class Photo:
    """A real photograph: uint8 (H, W, 3) of at most 512 pixels a side, and where it comes from."""

    name: str
    source: str
    image: np.ndarray
    keep: np.ndarray
    tokens: int
    cosine: float


@dataclass
class ProbeRow:
    """One question to a small classifier: the share of right answers from tokens, from the encoder, and by chance."""

    what: str
    tokens: float
    encoder: float
    chance: float


@dataclass
class QuickstartResult:
    """Everything that one run of the quickstart measured.

    seconds: wall clock of the whole run. parameters: part of the model -> number of parameters.
    encoder_history: rows with step, loss, accuracy. history: rows with step, loss, reconstruction_loss, ratio_loss,
    commitment_loss, keep_rate, codes_used, perplexity, images_per_second, phase; a key may be missing from a row.
    content: number of objects -> tokens of each held-out scene with that many. code_counts: (K,) uses of each code.
    cosines: mean reconstruction cosine of each held-out scene. grid: rows and columns of patches, N = their product.
    """

    command: str
    seconds: float
    device: str
    threads: int
    seed: int
    versions: dict[str, str] = field(default_factory=dict)
    model_path: str = ""
    parameters: dict[str, int] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    encoder_history: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    scenes: list[Scene] = field(default_factory=list)
    photos: list[Photo] = field(default_factory=list)
    content: dict[int, list[int]] = field(default_factory=dict)
    code_counts: list[int] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    probe: list[ProbeRow] = field(default_factory=list)
    kernels: list[Choice] = field(default_factory=list)
    grid: tuple[int, int] = (8, 8)


def write_report(result: QuickstartResult, path: str | os.PathLike[str]) -> None:
    """Write the page of a run to ``path``: one HTML file with everything in it. Its folder must exist."""
    with atomic_write(path, "w") as file:
        file.write(render_report(result))


def render_report(result: QuickstartResult) -> str:
    """The page as text. Parts of the result that are empty become a sentence that says so."""
    body = [
        _head(result),
        "<main>",
        _scenes(result),
        _photos(result),
        '<div class="two">',
        _content(result),
        _knowledge(result),
        _cosines(result),
        _codebook(result),
        "</div>",
        _learning(result),
        _stages(result),
        _implementations(result),
        _reproduce(result),
        "</main>",
        f"<footer>Written by <code>lavit quickstart</code>{_version(result)}. "
        "This page holds its own images and charts and asks nothing of the network.</footer>",
    ]
    return document("LaVIT quickstart report", "".join(body))


def mean_tokens(content: Mapping[int, Sequence[int]]) -> dict[int, float]:
    """Number of objects -> mean number of tokens, for the numbers of objects that occur, in order."""
    return {objects: fmean(tokens) for objects, tokens in sorted(content.items()) if len(tokens)}


def perplexity(counts: Sequence[int]) -> float:
    """exp of the entropy of the codes: how many of them, used evenly, would carry as much. NaN without uses."""
    total = sum(counts)
    if total == 0:
        return math.nan
    return math.exp(-sum(n / total * math.log(n / total) for n in counts if n))


def phases(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Name, first and last step of each run of rows with the same ``phase``; a phase ends where the next begins."""
    runs = [(name, list(rows)) for name, rows in groupby(history, key=lambda row: str(row.get("phase") or ""))]
    starts = [float(rows[0]["step"]) for _, rows in runs]
    ends = starts[1:] + [float(rows[-1]["step"]) for _, rows in runs[-1:]]
    return [(name, start, end) for (name, _), start, end in zip(runs, starts, ends, strict=True) if name]


def mean_of(values: Sequence[float]) -> float:
    """The mean of the finite values, NaN without one."""
    finite = [float(v) for v in values if math.isfinite(v)]
    return fmean(finite) if finite else math.nan


def _patches(result: QuickstartResult) -> int:
    return result.grid[0] * result.grid[1]


def _device(result: QuickstartResult) -> str:
    return f"{result.device}, {result.threads} {'thread' if result.threads == 1 else 'threads'}"


def _version(result: QuickstartResult) -> str:
    return f" {escape(result.versions['lavit'])}" if "lavit" in result.versions else ""


def _empty(words: str) -> str:
    return f'<p class="empty">{words}</p>'


def _head(result: QuickstartResult) -> str:
    tokens = [n for group in result.content.values() for n in group]
    means = mean_tokens(result.content)
    used = sum(1 for n in result.code_counts if n)
    numbers: list[tuple[str, str, str]] = []
    if tokens:
        share = percent(fmean(tokens) / _patches(result))
        note = f"tokens on average for a held-out scene of {_patches(result)} patches: {share} are kept"
        numbers.append(("content", decimal(fmean(tokens), 1), note))
    if len(means) > 1:
        (few, low), (many, high) = list(means.items())[0], list(means.items())[-1]
        numbers.append(("content", f"{low:.1f} \u2192 {high:.1f}", f"tokens from {few} to {many} objects in the scene"))
    if result.cosines:
        note = f"cosine of rebuilt and true features, mean of {integer(len(result.cosines))} held-out scenes"
        numbers.append(("cosine", decimal(mean_of(result.cosines)), note))
    if result.probe:
        row = result.probe[0]
        note = f"{row.what}, read from the tokens alone; encoder {percent(row.encoder)}, chance {percent(row.chance)}"
        numbers.append(("knowledge", percent(row.tokens), note))
    if result.code_counts:
        note = f"codes in use; they carry as much as {decimal(perplexity(result.code_counts), 0)} used evenly"
        numbers.append(("codebook", f"{integer(used)} of {integer(len(result.code_counts))}", note))
    numbers.append(("stages", duration(result.seconds), f"for the whole run on {_device(result)}"))
    tiles = "".join(
        f'<li><a href="#{anchor}"><b>{escape(number)}</b><span>{escape(note)}</span></a></li>'
        for anchor, number, note in numbers
    )
    return (
        '<header><p class="eyebrow">LaVIT quickstart report</p>'
        f"<h1>A dynamic visual tokenizer, trained from nothing in {escape(duration(result.seconds))}</h1>"
        '<p class="lead">The tokenizer looks at an image, keeps the patches that the others cannot stand in for, and '
        "writes each of them as one code of a learned codebook: a variable number of tokens that a language model can "
        "read like words. This page shows what a small one learned in this run; apart from the training "
        "curves, everything was measured on images that it never saw.</p>"
        f'<ul class="numbers">{tiles}</ul></header>'
    )


def differing(words: str, other: str) -> str:
    """``words`` as HTML, with those marked that ``other`` does not have at that point."""
    a, b = words.split(), other.split()
    parts = []
    for kind, start, end, _, _ in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        text = escape(" ".join(a[start:end]))
        if text:
            parts.append(text if kind == "equal" else f"<mark>{text}</mark>")
    return " ".join(parts)


def _card(of: Scene | Photo, grid: tuple[int, int], alt: str, rest: str) -> str:
    """An image beside its token map, with the count and what else there is to say (``rest``: HTML)."""
    image, patches, photograph = Image.fromarray(of.image), grid[0] * grid[1], isinstance(of, Photo)
    drawn = draw_token_map(image, of.keep, grid)
    css = "" if photograph else "pixels"
    plural = "token" if of.tokens == 1 else "tokens"
    drawn_alt = f"Kept patches of this image: {of.tokens} of {patches}"
    first, second = image_tag(image, alt, css, photograph), image_tag(drawn, drawn_alt, "", photograph)
    count = (
        f'<p class="count"><b>{of.tokens}</b> {plural} of {patches} patches '
        f'<span class="end">cosine {decimal(of.cosine)}</span></p>'
        f'<div class="meter" aria-hidden="true"><i style="width:{100 * of.tokens / patches:.1f}%"></i></div>'
    )
    if photograph:
        body = f'<div class="pair">{first}{second}</div><figcaption>{count}{rest}</figcaption>'
        return f'<figure class="card">{body}</figure>'
    # A scene is simple enough to be small: its map gets the room.
    body = f'<div class="pair"><div>{first}{count}</div>{second}</div><figcaption>{rest}</figcaption>'
    return f'<figure class="card scene">{body}</figure>'


def _scenes(result: QuickstartResult) -> str:
    lead = (
        "Held-out scenes, each beside its token map: kept patches clear and outlined, dropped ones pale. Below, the "
        "true caption and what a small classifier reads back from the tokens alone."
    )
    if not result.scenes:
        return section("scenes", "What it keeps of a scene", lead, _empty("This run tokenized no held-out scene."))
    cards = []
    for scene in result.scenes:
        verdict = '<span class="verdict right">\u2713 right</span>'
        if not scene.correct:
            verdict = '<span class="verdict wrong">\u2717 wrong</span>'
        rest = (
            f"<dl><dt>true</dt><dd>{differing(scene.caption, scene.read_back)}</dd>"
            f'<dt>read</dt><dd class="read">{differing(scene.read_back, scene.caption)} {verdict}</dd></dl>'
        )
        cards.append(_card(scene, result.grid, f"Scene: {scene.caption}", rest))
    right = sum(scene.correct for scene in result.scenes)
    lead += (
        f" Of these {len(result.scenes)} scenes {right} are read back without a mistake; differing words are marked."
    )
    return section("scenes", "What it keeps of a scene", lead, f'<div class="cards">{"".join(cards)}</div>')


def _photos(result: QuickstartResult) -> str:
    lead = (
        "The same tokenizer on photographs, each shrunk to the size of a scene first. It has only ever seen drawn "
        "shapes: what counts here is where it spends its tokens, not what it recognises."
    )
    if not result.photos:
        words = "No photographs in this run: they come with scikit-image or scikit-learn, and neither is installed."
        return section("photos", "What it keeps of a photograph", lead, _empty(words))
    cards = []
    for photo in result.photos:
        rest = f"<dl><dt>{escape(photo.name)}</dt><dd>from {escape(photo.source)}</dd></dl>"
        cards.append(_card(photo, result.grid, f"Photograph: {photo.name}", rest))
    return section("photos", "What it keeps of a photograph", lead, f'<div class="cards photos">{"".join(cards)}</div>')


def _content(result: QuickstartResult) -> str:
    means = mean_tokens(result.content)
    pairs = [(objects, n) for objects, tokens in result.content.items() for n in tokens]
    lead = "A dot is a held-out scene; the line is the mean, the box holds the middle half."
    if len(means) > 1:
        listed = ", ".join(f"{value:.1f} for {objects}" for objects, value in means.items())
        values = list(means.values())
        follows = all(a < b for a, b in zip(values[:-1], values[1:], strict=True))
        verdict = "More objects get more tokens" if follows else "The number of tokens does not rise with every object"
        if len({n for _, n in pairs}) > 1:  # a correlation with a constant does not exist
            listed += f"; correlation {decimal(correlation(*zip(*pairs, strict=True)), 2)}"
        lead = f"{verdict}: {listed}. {lead}"
    chart = charts.strip(
        "Tokens against the number of objects",
        {str(objects): result.content[objects] for objects in means},
        x_label="objects in the scene",
        y_label="tokens",
    )
    body = f'<div class="card">{chart}</div>' if chart else _empty("This run counted no tokens on held-out scenes.")
    return section("content", "Tokens against content", lead, body)


def _knowledge(result: QuickstartResult) -> str:
    lead = (
        "A small classifier is trained on the features rebuilt from the tokens and asked about held-out scenes. "
        "Beside it: the same on the encoder's own features, the most that the tokens could know, and chance."
    )
    if not result.probe:
        return section("knowledge", "What the tokens still know", lead, _empty("This run trained no probe."))
    groups = []
    for row in result.probe:
        bars = []
        for i, (name, share) in enumerate([("tokens", row.tokens), ("encoder", row.encoder), ("chance", row.chance)]):
            first = f'<th scope="rowgroup" rowspan="3">{escape(row.what)}</th>' if i == 0 else ""
            width = 78 * min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
            number = f"<b>{percent(share)}</b>" if i == 0 else percent(share)
            bars.append(
                f'<tr>{first}<th scope="row" class="from">{name}</th><td class="bars"><div class="track">'
                f'<i class="{name}" style="width:{width:.1f}%" aria-hidden="true"></i>{number}</div></td></tr>'
            )
        groups.append(f"<tbody>{''.join(bars)}</tbody>")
    head = "".join(f'<th scope="col">{name}</th>' for name in ("asked", "read from", "right answers"))
    body = (
        '<div class="scroll" role="region" aria-label="Probe" tabindex="0"><table class="probe">'
        f"<thead><tr>{head}</tr></thead>{''.join(groups)}</table></div>"
    )
    return section("knowledge", "What the tokens still know", lead, body)


def _cosines(result: QuickstartResult) -> str:
    lead = (
        "How close the features rebuilt from the tokens come to the encoder's: the cosine, averaged over the "
        "patches of a scene; 1 would be perfect."
    )
    chart = charts.histogram(
        "Reconstruction cosine of the held-out scenes", result.cosines, x_label="cosine", y_label="scenes", high=1.0
    )
    body = f'<div class="card">{chart}</div>' if chart else _empty("This run rebuilt no held-out scene.")
    return section("cosine", "Reconstruction", lead, body)


def _codebook(result: QuickstartResult) -> str:
    counts = result.code_counts
    lead = "How often each code occurs in the tokens of the held-out scenes, the most frequent first."
    if sum(counts):
        used = sum(1 for n in counts if n)
        lead += (
            f" {integer(used)} of {integer(len(counts))} codes occur; perplexity {decimal(perplexity(counts), 1)} "
            f"({integer(len(counts))} if all were equally frequent)."
        )
    chart = charts.ranked("Use of the codes", counts, x_label="codes, by frequency", y_label="uses")
    body = f'<div class="card">{chart}</div>' if chart else _empty("This run counted no codes.")
    return section("codebook", "Codebook", lead, body)


_CURVES: tuple[tuple[str, str, str, str], ...] = (
    ("loss", "Loss", "loss", "The sum of the parts, as it is minimised."),
    ("reconstruction_loss", "Reconstruction", "1 \u2212 cosine", "Of the features rebuilt from the tokens."),
    ("ratio_loss", "Keep-rate penalty", "squared gap", "Squared gap of the keep rate to its target."),
    ("commitment_loss", "Commitment", "squared distance", "Of a vector to the code that stands for it."),
    ("keep_rate", "Keep rate", "share of patches", "How much of an image becomes tokens."),
    ("codes_used", "Codes in use", "codes", "Different codes seen lately."),
    ("perplexity", "Perplexity", "codes", "Evenly used codes that would carry as much."),
    ("images_per_second", "Speed", "images/s", "Throughput of the training loop."),
)
_ENCODER_CURVES: tuple[tuple[str, str, str, str], ...] = (
    ("loss", "Encoder loss", "loss", "Of its pre-training; frozen afterwards."),
    ("accuracy", "Encoder accuracy", "share right", "On the question it is pre-trained with."),
)


def _curves(
    history: Sequence[Mapping[str, Any]],
    which: Sequence[tuple[str, str, str, str]],
    spans: Sequence[tuple[float, float]],
) -> str:
    cards = []
    for key, title, unit, note in which:
        rows = [row for row in history if row.get(key) is not None]
        steps, values = [float(row["step"]) for row in rows], [float(row[key]) for row in rows]
        chart = charts.line(title, steps, values, x_label="step", y_label=unit, phases=spans)
        if chart:
            cards.append(f'<div class="card"><h3>{title}</h3><p>{note}</p>{chart}</div>')
    return f'<div class="small">{"".join(cards)}</div>' if cards else ""


def _learning(result: QuickstartResult) -> str:
    lead = "Every curve runs over the training steps; the dot is where it ended."
    spans = phases(result.history)
    body = ""
    if result.encoder_history:
        body += f'<h3 class="group">Encoder</h3>{_curves(result.encoder_history, _ENCODER_CURVES, ())}'
    tokenizer = _curves(result.history, _CURVES, [(start, end) for _, start, end in spans])
    if tokenizer:
        items = "".join(
            f"<li><b>{i}</b>{escape(name)} <span>steps {integer(start)}\u2013{integer(end)}</span></li>"
            for i, (name, start, end) in enumerate(spans, 1)
        )
        legend = f'<ol class="phases">{items}</ol>' if len(spans) > 1 else ""
        body += f'<h3 class="group">Tokenizer</h3>{legend}{tokenizer}'
        if legend:
            lead += " Dashed lines mark where a phase of the tokenizer's training ends and the next begins."
    return section("learning", "How it learned", lead, body or _empty("This run kept no training history."))


def _stages(result: QuickstartResult) -> str:
    lead = f"The run took {duration(result.seconds)} in all."
    if not result.stages:
        return section("stages", "Where the time went", lead, _empty("This run timed no stages."))
    longest = max(stage.seconds for stage in result.stages) or 1.0
    rows = [
        (
            escape(stage.name),
            f'{escape(stage.note)}<div class="share" style="width:{100 * stage.seconds / longest:.1f}%"></div>',
            duration(stage.seconds),
        )
        for stage in result.stages
    ]
    return section("stages", "Where the time went", lead, table(("stage", "what", "time"), rows, "Stages", (2,)))


def _implementations(result: QuickstartResult) -> str:
    lead = "Which form of each operation this machine ran, and why. <code>lavit info</code> prints the same table."
    if not result.kernels:
        return section("implementations", "Implementations in use", lead, _empty("This run recorded no choices."))
    rows = [
        (f"<code>{escape(c.operation)}</code>", escape(c.device_type), escape(c.name), escape(c.reason))
        for c in result.kernels
    ]
    head = ("operation", "device", "implementation", "reason")
    return section(
        "implementations", "Implementations in use", lead, table(head, rows, "Implementations", stacked=True)
    )


def _reproduce(result: QuickstartResult) -> str:
    lead = "This command repeats the run; the seed fixes the scenes, the start of every network and the noise."
    facts = [("seed", str(result.seed)), ("device", _device(result))]
    if result.model_path:
        facts.append(("model", f"<code>{escape(result.model_path)}</code>"))
    facts = [(escape(name), value if value.startswith("<code>") else escape(value)) for name, value in facts]
    facts += [(escape(name), escape(version)) for name, version in result.versions.items()]
    parts = [(escape(name), integer(count)) for name, count in result.parameters.items()]
    body = f'<pre tabindex="0"><code>{escape(result.command)}</code></pre>'
    setting = table(("what", "value"), facts, "Setting")
    body += f'<div class="two"><div><h3 class="group">Setting</h3>{setting}</div>'
    if parts:
        parts.append(("together", integer(sum(result.parameters.values()))))
        body += (
            '<div><h3 class="group">Parameters</h3>' + table(("part", "number"), parts, "Parameters", (1,)) + "</div>"
        )
    return section("reproduce", "Do it again", lead, body + "</div>")
