"""The page of a run: its head, its sections in their order, and what they ran on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from statistics import fmean
from typing import Any

from lavit.data.atomic_write import atomic_write
from lavit.page import decimal, document, duration, integer, percent, section, table
from lavit.report import language, pixels, tokenizer
from lavit.report.parts import empty
from lavit.report.result import QuickstartResult, mean_of, mean_tokens, perplexity, phases

Tile = tuple[str, str, str]
"""The section that it leads to, a number, and what it is."""


def write_report(result: QuickstartResult, path: str | os.PathLike[str]) -> None:
    """Write the page of a run to ``path``: one HTML file with everything in it. Its folder must exist."""
    with atomic_write(path, "w") as file:
        file.write(render_report(result))


def render_report(result: QuickstartResult) -> str:
    """The page as text. Parts of the result that are empty become a sentence that says so."""
    body = [
        _head(result),
        "<main>",
        tokenizer.scenes(result),
        tokenizer.photos(result),
        '<div class="two">',
        tokenizer.content(result),
        tokenizer.knowledge(result),
        tokenizer.cosines(result),
        tokenizer.codebook(result),
        "</div>",
        *(language.sections(result.language) if result.language else ()),
        *(pixels.sections(result.pixels) if result.pixels else ()),
        _learning(result),
        _stages(result),
        _implementations(result),
        _reproduce(result),
        "</main>",
        f"<footer>Written by <code>lavit quickstart</code>{_version(result)}. "
        "This page holds its own images and charts and asks nothing of the network.</footer>",
    ]
    return document("LaVIT quickstart report", "".join(body))


def _patches(result: QuickstartResult) -> int:
    return result.grid[0] * result.grid[1]


def _device(result: QuickstartResult) -> str:
    return f"{result.device}, {result.threads} {'thread' if result.threads == 1 else 'threads'}"


def _version(result: QuickstartResult) -> str:
    return f" {escape(result.versions['lavit'])}" if "lavit" in result.versions else ""


def _head(result: QuickstartResult) -> str:
    time = duration(result.seconds)
    numbers = _tokenizer_tiles(result)
    if result.language:
        numbers = language.tiles(result.language) + numbers
        title = f"One model that reads and writes images and text, trained from nothing in {time}"
    else:
        kind = "fixed-length" if result.length == "fixed" else "dynamic"
        title = f"A {kind} visual tokenizer, trained from nothing in {time}"
    if result.pixels:
        numbers = pixels.tiles(result.pixels) + numbers
    numbers.append(("stages", time, f"for the whole run on {_device(result)}"))
    tiles = "".join(
        f'<li><a href="#{anchor}"><b>{escape(number)}</b><span>{escape(note)}</span></a></li>'
        for anchor, number, note in numbers
    )
    return (
        f'<header><p class="eyebrow">LaVIT quickstart report</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{_lead(result)}</p><ul class="numbers">{tiles}</ul></header>'
    )


def _lead(result: QuickstartResult) -> str:
    """What the run was, from its parts."""
    keeps = "keeps the patches that the others cannot stand in for"
    how_many = "a variable number of tokens"
    if result.length == "fixed":
        keeps, how_many = "keeps the same number of patches of every image", "as many tokens for every image"
    reads = " that a language model can read like words"
    says = ""
    if result.language:
        reads = ""
        says = (
            "A language model then learned to caption images, to answer questions about them and to write the tokens "
            "of images that it is asked for. "
        )
    if result.pixels:
        says += "A U-Net learned to paint images from tokens. "
    return (
        f"The tokenizer looks at an image, {keeps}, and writes each of them as one code of a learned codebook: "
        f"{how_many}{reads}. {says}This page shows what a small one learned in this run; apart from the training "
        "curves, everything was measured on images that it never saw."
    )


def _tokenizer_tiles(result: QuickstartResult) -> list[Tile]:
    tokens = [n for group in result.content.values() for n in group]
    means = mean_tokens(result.content)
    used = sum(1 for n in result.code_counts if n)
    numbers: list[Tile] = []
    if tokens:
        share = percent(fmean(tokens) / _patches(result))
        note = f"tokens on average for a held-out scene of {_patches(result)} patches: {share} are kept"
        numbers.append(("content", decimal(fmean(tokens), 1), note))
    if len(set(means.values())) > 1:
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
    return numbers


def _learning(result: QuickstartResult) -> str:
    lead = "Every curve runs over the training steps; the dot is where it ended."
    body = tokenizer.learning(result)
    if len(phases(result.history)) > 1:
        lead += " Dashed lines mark where a phase of the tokenizer's training ends and the next begins."
    if result.language:
        body += language.learning(result.language)
    if result.pixels:
        body += pixels.learning(result.pixels)
    return section("learning", "How it learned", lead, body or empty("This run kept no training history."))


def _stages(result: QuickstartResult) -> str:
    lead = f"The run took {duration(result.seconds)} in all."
    if not result.stages:
        return section("stages", "Where the time went", lead, empty("This run timed no stages."))
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
        return section("implementations", "Implementations in use", lead, empty("This run recorded no choices."))
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
    facts = [("seed", str(result.seed)), ("device", escape(_device(result))), ("length", escape(result.length))]
    paths = {"tokenizer": result.model_path}
    for name, stage in (("model", result.language), ("pixels", result.pixels)):
        paths |= {name: stage.model_path} if stage else {}
    facts += [(name, f"<code>{escape(path)}</code>") for name, path in paths.items() if path]
    later = [stage for stage in (result.language, result.pixels) if stage]
    for stage in later:
        facts += [(escape(name), escape(_words(value))) for name, value in stage.settings.items()]
    facts += [(escape(name), escape(version)) for name, version in result.versions.items()]
    counts = dict(result.parameters)
    for stage in later:
        counts |= stage.parameters
    parts = [(escape(name), integer(count)) for name, count in counts.items()]
    body = f'<pre tabindex="0"><code>{escape(result.command)}</code></pre>'
    setting = table(("what", "value"), facts, "Setting")
    body += f'<div class="two"><div><h3 class="group">Setting</h3>{setting}</div>'
    if parts:
        parts.append(("together", integer(sum(counts.values()))))
        body += (
            '<div><h3 class="group">Parameters</h3>' + table(("part", "number"), parts, "Parameters", (1,)) + "</div>"
        )
    return section("reproduce", "Do it again", lead, body + "</div>")


def _words(value: Any) -> str:
    """A setting, or settings within it, as words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items())
    return str(value)
