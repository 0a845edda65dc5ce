"""What the report shows of the language stage: captions and answers, images asked for, how often each is right."""

from __future__ import annotations

import math
from html import escape

from PIL import Image

from lavit.page import MISSING, decimal, image_tag, integer, percent, section, table
from lavit.report.parts import Bar, Curve, bars, curves, differing, empty, verdict
from lavit.report.result import Answer, LanguageResult, Rate, Request, Spoken

_CURVES: tuple[Curve, ...] = (
    ("loss", "Loss", "loss", "Of all tokens that are predicted, words and codes."),
    ("text_loss", "Words", "nats a token", "Of captions and answers."),
    ("image_loss", "Codes", "nats a token", "Of the tokens of images."),
    ("tokens_per_second", "Speed", "tokens/s", "Throughput of the training loop, nothing of it padding."),
)


def tiles(result: LanguageResult) -> list[tuple[str, str, str]]:
    """The numbers for the page's head, as far as the run has them."""
    found = []
    wanted = (
        ("spoken", result.captions.get("exact"), "of held-out scenes captioned word for word right"),
        ("spoken", result.answers.get("mean"), "of questions about them answered right"),
        ("requests", result.images.get("recall"), "of the objects asked for are in the images that it draws as tokens"),
        ("changes", result.edits.get("scene"), "of scenes changed as asked, drawn as tokens with every cell right"),
    )
    for anchor, rate, note in wanted:
        if rate is not None:
            most = "" if math.isnan(rate.ceiling) else f"tokens of true images {percent(rate.ceiling)}, "
            found.append((anchor, percent(rate.model), f"{note}; {most}chance {percent(rate.chance)}"))
    return found


def sections(result: LanguageResult) -> list[str]:
    return [_spoken(result), _requests(result), *_changes(result), _rates(result)]


def learning(result: LanguageResult) -> str:
    """The learning curves; empty where the run kept none."""
    found = curves(result.history, _CURVES)
    return f'<h3 class="group">Language model</h3>{found}' if found else ""


def _spoken(result: LanguageResult) -> str:
    lead = (
        "Held-out scenes, each with its true caption, the model's own, and the model's answers to the four questions. "
        "It reads an image as continuous features, without quantisation. Differing words are marked."
    )
    if not result.spoken:
        return section("spoken", "What it says", lead, empty("This run showed the model no held-out scene."))
    asked = [answer for scene in result.spoken for answer in scene.answers]
    lead += (
        f" Of these {len(result.spoken)} scenes {sum(one.said == one.caption for one in result.spoken)} are captioned "
        f"without a mistake, and {sum(answer.correct for answer in asked)} of {len(asked)} answers are right."
    )
    cards = "".join(map(_card, result.spoken))
    return section("spoken", "What it says", lead, f'<div class="cards">{cards}</div>')


def _card(scene: Spoken) -> str:
    picture = image_tag(Image.fromarray(scene.image), f"Scene: {scene.caption}", "pixels")
    said = (
        f"<dl><dt>true</dt><dd>{differing(scene.caption, scene.said)}</dd>"
        f'<dt>says</dt><dd class="read">{differing(scene.said, scene.caption)} {verdict(scene.said == scene.caption)}'
        "</dd></dl>"
    )
    asked = f'<dl class="asked">{"".join(map(_answer, scene.answers))}</dl>' if scene.answers else ""
    body = f'<div class="pair">{picture}{said}</div><figcaption>{asked}</figcaption>'
    return f'<figure class="card scene">{body}</figure>'


def _answer(answer: Answer) -> str:
    true = "" if answer.correct else f" (true: {escape(answer.true)})"
    given = escape(answer.given) or MISSING
    return f"<dt>{escape(answer.question)}</dt><dd>{given}{true} {verdict(answer.correct)}</dd>"


def _requests(result: LanguageResult) -> str:
    lead = (
        "The model is given a caption and writes the tokens of an image. The tokens are decoded to features, and the "
        "same small classifier that reads the tokenizer's own says what stands where."
    )
    if "drawn" in result.tokens:
        lead += (
            f" It writes {decimal(result.tokens['drawn'], 1)} tokens an image, the tokenizer "
            f"{decimal(result.tokens['true'], 1)} for the scenes that the captions are of."
        )
    if not result.requests:
        return section("requests", "What it draws", lead, empty("This run asked the model for no image."))
    rows = [
        (
            differing(one.true, one.read),
            f'<span class="read">{differing(one.read, one.true)}</span>',
            verdict(one.read == one.true),
            integer(one.tokens),
        )
        for one in result.requests
    ]
    body = table(("asked for", "read from the tokens drawn", "verdict", "tokens"), rows, "Requests", (3,))
    return section("requests", "What it draws", lead, body)


def _changes(result: LanguageResult) -> list[str]:
    """Nothing of a model that has not learned it."""
    if not result.changes:
        return []
    lead = (
        "The model is shown a held-out scene, as continuous features, and words that ask for one change; it writes the "
        "tokens of the whole new image. Beside each is what the classifier reads from them."
    )
    cards = "".join(map(_change, result.changes))
    return [section("changes", "What it changes", lead, f'<div class="cards">{cards}</div>')]


def _change(one: Request) -> str:
    assert one.image is not None
    picture = image_tag(Image.fromarray(one.image), "The scene that the model is shown", "pixels")
    said = (
        f"<dl><dt>asked</dt><dd>{escape(one.prompt)}</dd><dt>wanted</dt><dd>{differing(one.true, one.read)}</dd>"
        f'<dt>read</dt><dd class="read">{differing(one.read, one.true)} {verdict(one.read == one.true)}</dd></dl>'
    )
    return f'<figure class="card scene"><div class="pair">{picture}{said}</div></figure>'


def _rates(result: LanguageResult) -> str:
    lead = (
        f"On {integer(result.scenes)} held-out scenes with {integer(result.questions)} questions. Chance is the best "
        "answer that can be given without looking. For images asked for there is a ceiling, too: what the same "
        "classifier reads from the true images' own tokens."
    )
    if result.edits:
        lead += " For changes, chance is the best guess that looks at the scene but does not read the words."
    rows: list[tuple[str, Rate | None]] = [
        ("Captions word for word right", result.captions.get("exact")),
        ("Objects named in captions", result.captions.get("recall")),
        ("Answers right", result.answers.get("mean")),
        *((f"Answers: {kind}", rate) for kind, rate in result.answers.items() if kind != "mean"),
        ("Images asked for: every cell right", result.images.get("scene")),
        ("Images asked for: objects there", result.images.get("recall")),
        ("Images asked for: cells right", result.images.get("cell")),
        ("Changes asked for: every cell right", result.edits.get("scene")),
        ("Changes asked for: objects there", result.edits.get("recall")),
        ("Changes asked for: cells right", result.edits.get("cell")),
    ]
    groups = [(what, _bars(rate)) for what, rate in rows if rate is not None]
    title = "How often it is right"
    if not groups:
        return section("rates", title, lead, empty("This run judged nothing that the model says or draws."))
    return section("rates", title, lead, bars(groups, ("what", "of", "right"), "Rates of the language model"))


def _bars(rate: Rate) -> list[Bar]:
    own = [] if math.isnan(rate.ceiling) else [("true tokens", "encoder", rate.ceiling)]
    return [("model", "tokens", rate.model), *own, ("chance", "chance", rate.chance)]
