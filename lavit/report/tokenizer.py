"""What the report shows of the tokenizer: scenes and photographs, what the tokens know, how it learned."""

from __future__ import annotations

from html import escape
from statistics import correlation

from PIL import Image

from lavit import charts
from lavit.page import decimal, image_tag, integer, section
from lavit.report.parts import Curve, bars, curves, differing, empty, verdict
from lavit.report.result import Photo, QuickstartResult, Scene, mean_tokens, perplexity, phases
from lavit.tokenmap import draw_token_map


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


def scenes(result: QuickstartResult) -> str:
    lead = (
        "Held-out scenes, each beside its token map: kept patches clear and outlined, dropped ones pale. Below, the "
        "true caption and what a small classifier reads back from the tokens alone."
    )
    if not result.scenes:
        return section("scenes", "What it keeps of a scene", lead, empty("This run tokenized no held-out scene."))
    cards = []
    for scene in result.scenes:
        rest = (
            f"<dl><dt>true</dt><dd>{differing(scene.caption, scene.read_back)}</dd>"
            f'<dt>read</dt><dd class="read">{differing(scene.read_back, scene.caption)} {verdict(scene.correct)}'
            "</dd></dl>"
        )
        cards.append(_card(scene, result.grid, f"Scene: {scene.caption}", rest))
    right = sum(scene.correct for scene in result.scenes)
    lead += (
        f" Of these {len(result.scenes)} scenes {right} are read back without a mistake; differing words are marked."
    )
    return section("scenes", "What it keeps of a scene", lead, f'<div class="cards">{"".join(cards)}</div>')


def photos(result: QuickstartResult) -> str:
    lead = (
        "The same tokenizer on photographs, each shrunk to the size of a scene first. It has only ever seen drawn "
        "shapes: what counts here is where it spends its tokens, not what it recognises."
    )
    if not result.photos:
        words = "No photographs in this run: they come with scikit-image or scikit-learn, and neither is installed."
        return section("photos", "What it keeps of a photograph", lead, empty(words))
    cards = []
    for photo in result.photos:
        rest = f"<dl><dt>{escape(photo.name)}</dt><dd>from {escape(photo.source)}</dd></dl>"
        cards.append(_card(photo, result.grid, f"Photograph: {photo.name}", rest))
    return section("photos", "What it keeps of a photograph", lead, f'<div class="cards photos">{"".join(cards)}</div>')


def content(result: QuickstartResult) -> str:
    means = mean_tokens(result.content)
    pairs = [(objects, n) for objects, tokens in result.content.items() for n in tokens]
    lead = "A dot is a held-out scene; the line is the mean, the box holds the middle half."
    if len(means) > 1:
        listed = ", ".join(f"{value:.1f} for {objects}" for objects, value in means.items())
        values = list(means.values())
        follows = all(a < b for a, b in zip(values[:-1], values[1:], strict=True))
        trend = "More objects get more tokens" if follows else "The number of tokens does not rise with every object"
        if len({n for _, n in pairs}) > 1:  # a correlation with a constant does not exist
            listed += f"; correlation {decimal(correlation(*zip(*pairs, strict=True)), 2)}"
        lead = f"{trend}: {listed}. {lead}"
    chart = charts.strip(
        "Tokens against the number of objects",
        {str(objects): result.content[objects] for objects in means},
        x_label="objects in the scene",
        y_label="tokens",
    )
    body = f'<div class="card">{chart}</div>' if chart else empty("This run counted no tokens on held-out scenes.")
    return section("content", "Tokens against content", lead, body)


def knowledge(result: QuickstartResult) -> str:
    lead = (
        "A small classifier is trained on the features rebuilt from the tokens and asked about held-out scenes. "
        "Beside it: the same on the encoder's own features, the most that the tokens could know, and chance."
    )
    if not result.probe:
        return section("knowledge", "What the tokens still know", lead, empty("This run trained no probe."))
    groups = [
        (
            row.what,
            [("tokens", "tokens", row.tokens), ("encoder", "encoder", row.encoder), ("chance", "chance", row.chance)],
        )
        for row in result.probe
    ]
    body = bars(groups, ("asked", "read from", "right answers"), "Probe")
    return section("knowledge", "What the tokens still know", lead, body)


def cosines(result: QuickstartResult) -> str:
    lead = (
        "How close the features rebuilt from the tokens come to the encoder's: the cosine, averaged over the "
        "patches of a scene; 1 would be perfect."
    )
    chart = charts.histogram(
        "Reconstruction cosine of the held-out scenes", result.cosines, x_label="cosine", y_label="scenes", high=1.0
    )
    body = f'<div class="card">{chart}</div>' if chart else empty("This run rebuilt no held-out scene.")
    return section("cosine", "Reconstruction", lead, body)


def codebook(result: QuickstartResult) -> str:
    counts = result.code_counts
    lead = "How often each code occurs in the tokens of the held-out scenes, the most frequent first."
    if sum(counts):
        used = sum(1 for n in counts if n)
        lead += (
            f" {integer(used)} of {integer(len(counts))} codes occur; perplexity {decimal(perplexity(counts), 1)} "
            f"({integer(len(counts))} if all were equally frequent)."
        )
    chart = charts.ranked("Use of the codes", counts, x_label="codes, by frequency", y_label="uses")
    body = f'<div class="card">{chart}</div>' if chart else empty("This run counted no codes.")
    return section("codebook", "Codebook", lead, body)


_CURVES: tuple[Curve, ...] = (
    ("loss", "Loss", "loss", "The sum of the parts, as it is minimised."),
    ("reconstruction_loss", "Reconstruction", "1 \u2212 cosine", "Of the features rebuilt from the tokens."),
    ("ratio_loss", "Keep-rate penalty", "squared gap", "Squared gap of the keep rate to its target."),
    ("commitment_loss", "Commitment", "squared distance", "Of a vector to the code that stands for it."),
    ("keep_rate", "Keep rate", "share of patches", "How much of an image becomes tokens."),
    ("codes_used", "Codes in use", "codes", "Different codes seen lately."),
    ("perplexity", "Perplexity", "codes", "Evenly used codes that would carry as much."),
    ("images_per_second", "Speed", "images/s", "Throughput of the training loop."),
)
_ENCODER_CURVES: tuple[Curve, ...] = (
    ("loss", "Encoder loss", "loss", "Of its pre-training; frozen afterwards."),
    ("accuracy", "Encoder accuracy", "share right", "On the question it is pre-trained with."),
)


def learning(result: QuickstartResult) -> str:
    """The learning curves, encoder and tokenizer; empty where the run kept none."""
    body = ""
    if result.encoder_history:
        body += f'<h3 class="group">Encoder</h3>{curves(result.encoder_history, _ENCODER_CURVES)}'
    spans = phases(result.history)
    tokenizer = curves(result.history, _CURVES, [(start, end) for _, start, end in spans])
    if tokenizer:
        items = "".join(
            f"<li><b>{i}</b>{escape(name)} <span>steps {integer(start)}\u2013{integer(end)}</span></li>"
            for i, (name, start, end) in enumerate(spans, 1)
        )
        legend = f'<ol class="phases">{items}</ol>' if len(spans) > 1 else ""
        body += f'<h3 class="group">Tokenizer</h3>{legend}{tokenizer}'
    return body
