"""The picture of a run for a README: what was kept of scenes and photographs, tokens against content, what the language
model said and drew, and what was painted, as a PNG."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from lavit import charts
from lavit.data.atomic_write import atomic_write
from lavit.page import decimal, duration, integer, percent
from lavit.report import (
    LanguageResult,
    Painting,
    Photo,
    PixelsResult,
    QuickstartResult,
    Rate,
    Request,
    Scene,
    Spoken,
    mean_of,
    mean_tokens,
)
from lavit.tokenmap import draw_token_map

WIDTH, HEIGHT = 960, 520
LANGUAGE_HEIGHT = 264  # more, where a language model was trained
PIXELS_HEIGHT = 204  # more, where a U-Net was trained
_SCALE = 2  # pixels for each unit of the layout, so that text stays sharp on a dense screen
_MARGIN, _LEFT, _GAP = 30, 570, 12
_PAPER, _INK, _SOFT, _RULE = (255, 255, 255), (28, 30, 34), (86, 92, 102), (226, 224, 218)
_BLUE, _WASH, _AMBER = (36, 87, 197), (226, 233, 247), (163, 76, 0)

_WAYS = {  # of painting: over an image, and beside a rate
    "image": ("its tokens", "from its tokens"),
    "text": ("its caption", "from its caption"),
    "image and text": ("changed", "changed as asked"),
}


def write_figure(result: QuickstartResult, path: str | os.PathLike[str]) -> None:
    """Draw the figure of a run to ``path`` in an existing folder: a PNG 1920 wide, and 1040 high or more by a language
    stage (528) and a pixel stage (408). The same run, the same picture."""
    with atomic_write(path, "wb") as file:
        draw_figure(result).save(file, "PNG", optimize=True)


def draw_figure(result: QuickstartResult) -> Image.Image:
    """Scenes and photographs on the left, the chart and the numbers on the right, and below, where there are these
    stages, what the language model said and drew, and what was painted. Empty parts say that they are."""
    height = HEIGHT + (LANGUAGE_HEIGHT if result.language else 0)
    canvas = _Canvas(height + (PIXELS_HEIGHT if result.pixels else 0))
    below = _draw_scenes(canvas, spread(result.scenes, 4), result.grid)
    _draw_photos(canvas, result.photos, result.grid, below + 26)
    x = _MARGIN + _LEFT + 42
    below = _draw_content(canvas, result, x, WIDTH - _MARGIN - x)
    _draw_numbers(canvas, result, x, below + 14)
    if result.language:
        _draw_language(canvas, result.language, HEIGHT + 14)
    if result.pixels:
        _draw_pixels(canvas, result.pixels, height + 14)
    return canvas.image


def spread(scenes: Sequence[Scene], most: int) -> list[Scene]:
    """At most ``most`` scenes from the fewest to the most tokens, evenly over that order: not the best ones."""
    ordered = sorted(scenes, key=lambda scene: scene.tokens)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]


class _Canvas:
    """A page in layout units, drawn in pixels."""

    def __init__(self, height: float) -> None:
        self.image = Image.new("RGB", (WIDTH * _SCALE, round(height * _SCALE)), _PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self, x: float, y: float, words: str, size: float, ink: tuple[int, int, int] = _INK, anchor: str = "ls"
    ) -> None:
        # Pillow's own font has no narrow space.
        self.draw.text((x * _SCALE, y * _SCALE), _plain(words), ink, _font(size), anchor=anchor)

    def heading(self, x: float, y: float, words: str) -> None:
        self.text(x, y, words, 15)

    def rule(self, x: float, y: float, width: float, ink: tuple[int, int, int], thickness: float = 1) -> None:
        box = (x * _SCALE, (y - thickness / 2) * _SCALE, (x + width) * _SCALE, (y + thickness / 2) * _SCALE - 1)
        self.draw.rectangle(box, fill=ink)

    def paste(
        self,
        image: Image.Image,
        x: float,
        y: float,
        width: float,
        height: float,
        how: Image.Resampling = Image.Resampling.LANCZOS,
    ) -> None:
        size = (round(width * _SCALE), round(height * _SCALE))
        self.image.paste(image.resize(size, how), (round(x * _SCALE), round(y * _SCALE)))


def _plain(words: str) -> str:
    return words.replace(charts.THIN, " ").replace("\u2212", "-")


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SCALE)


def _wrap(words: str, size: float, width: float, most: int) -> list[str]:
    """Lines that fit ``width``; what does not fit ``most`` lines ends in an ellipsis, and a word longer than a line is
    cut."""
    font, lines = _font(size), [""]
    for word in words.split():
        while font.getlength(word) > width * _SCALE and len(word) > 1:
            word = word[:-1]
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width * _SCALE or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1]} ..."]


def _draw_scenes(canvas: _Canvas, scenes: Sequence[Scene], grid: tuple[int, int]) -> float:
    canvas.heading(_MARGIN, 44, "What it keeps of scenes that it has never seen")
    if not scenes:
        canvas.text(_MARGIN, 70, "This run tokenized no held-out scene.", 12, _SOFT)
        return 70
    side = (_LEFT - 3 * _GAP) / 4
    for i, scene in enumerate(scenes):
        x, y = _MARGIN + i * (side + _GAP), 58.0
        canvas.paste(draw_token_map(Image.fromarray(scene.image), scene.keep, grid), x, y, side, side)
        canvas.text(x, y + side + 24, _count(scene), 17)
        canvas.text(x, y + side + 40, "read back from the tokens:", 10, _SOFT)
        for line, words in enumerate(_wrap(scene.read_back, 10, side, 3)):
            canvas.text(x, y + side + 54 + 13 * line, words, 10)
        canvas.text(
            x + side, y + side + 24, "right" if scene.correct else "wrong", 10, _BLUE if scene.correct else _AMBER, "rs"
        )
    return 58 + side + 84


def _draw_photos(canvas: _Canvas, photos: Sequence[Photo], grid: tuple[int, int], top: float) -> None:
    canvas.heading(_MARGIN, top, "... and of photographs, having learned from drawn shapes alone")
    if not photos:
        canvas.text(_MARGIN, top + 26, "No photographs in this run.", 12, _SOFT)
        return
    maps = [draw_token_map(Image.fromarray(photo.image), photo.keep, grid) for photo in photos]
    shown, height = _row(maps, _LEFT, HEIGHT - _MARGIN - 20 - (top + 14))
    x = float(_MARGIN)
    for photo, drawn in zip(photos[:shown], maps[:shown], strict=True):
        width = height * drawn.width / drawn.height
        canvas.paste(drawn, x, top + 14, width, height)
        canvas.text(x, top + 14 + height + 17, _count(photo), 11)
        x += width + _GAP


def _row(images: Sequence[Image.Image], width: float, most: float) -> tuple[int, float]:
    """How many of the first images make one row of ``width``, and the height at which they do, ``most`` at the most."""
    for n in range(1, len(images) + 1):
        height = (width - (n - 1) * _GAP) / sum(im.width / im.height for im in images[:n])
        if height <= most:
            return n, height
    return len(images), most


def _count(of: Scene | Photo) -> str:
    return f"{of.tokens} token{'' if of.tokens == 1 else 's'}"


def _draw_content(canvas: _Canvas, result: QuickstartResult, x: float, width: float) -> float:
    canvas.heading(x, 44, "Tokens against objects in the scene")
    means = mean_tokens(result.content)
    top, base, left = 64.0, 276.0, x + 26
    if not means:
        canvas.text(x, 70, "This run counted no tokens.", 12, _SOFT)
        return 70
    rows = charts.labels(charts.ticks(0, max(max(result.content[n]) for n in means), 4))
    unit = (base - top) / max(rows)

    def level(tokens: float) -> float:
        return base - tokens * unit

    for value, name in rows.items():
        canvas.rule(left, level(value), width - 26, _SOFT if value == 0 else _RULE, 0.5 if value else 1)
        canvas.text(left - 8, level(value), name, 10.5, _SOFT, "rm")
    column = (width - 26) / len(means)
    for i, (objects, mean) in enumerate(means.items()):
        _draw_column(canvas, left + (i + 0.42) * column, min(column * 0.32, 40), result.content[objects], mean, level)
        canvas.text(
            left + (i + 0.42) * column, base + 17, f"{objects} object{'' if objects == 1 else 's'}", 11, _SOFT, "ms"
        )
    return base + 30


def _draw_column(
    canvas: _Canvas, x: float, half: float, values: Sequence[float], mean: float, level: Callable[[float], float]
) -> None:
    """One dot a scene, and the mean as a line with its number."""
    for shift, value in charts.swarm(values, 4.0, half):
        centre = ((x + shift) * _SCALE, level(value) * _SCALE)
        canvas.draw.circle(centre, 1.6 * _SCALE, fill=(124, 154, 220))
    canvas.rule(x - half, level(mean), 2 * half, _AMBER, 2)
    canvas.text(x + half + 4, level(mean), f"{mean:.1f}", 11, _INK, "lm")


def _draw_numbers(canvas: _Canvas, result: QuickstartResult, x: float, top: float) -> None:
    lines: list[tuple[str, str]] = []
    if result.cosines:
        lines.append((decimal(mean_of(result.cosines)), "cosine of rebuilt and true features"))
    for row in result.probe[:2]:
        lines.append((percent(row.tokens), f"{row.what}, from tokens (encoder {percent(row.encoder)})"))
    if result.code_counts:
        used = sum(1 for n in result.code_counts if n)
        lines.append((integer(used), f"of {integer(len(result.code_counts))} codes in use"))
    threads = "1 thread" if result.threads == 1 else f"{result.threads} threads"
    lines.append((duration(result.seconds), f"in all, on {result.device}, {threads}"))
    _draw_lines(canvas, lines, x, top)


def _draw_lines(canvas: _Canvas, lines: Sequence[tuple[str, str]], x: float, top: float) -> None:
    """Numbers, and what they are."""
    for i, (number, note) in enumerate(lines):
        y = top + 24 + 34 * i
        canvas.rule(x, y - 23, WIDTH - _MARGIN - x, _RULE)
        canvas.text(x, y, number, 17, _BLUE)
        wrapped = _wrap(note, 10.5, WIDTH - _MARGIN - x - 108, 2)
        for line, words in enumerate(wrapped):
            canvas.text(x + 108, y - (8 if len(wrapped) > 1 else 1) + 13 * line, words, 10.5, _SOFT)


def _draw_language(canvas: _Canvas, result: LanguageResult, top: float) -> None:
    """The first held-out scenes in the model's words, the first requests, and the rates, in four columns."""
    spoken, requests = result.spoken[:2], result.requests[:2]
    canvas.heading(_MARGIN, top, "What the language model says of such scenes, and draws when asked")
    width = (_LEFT - 4 * _GAP) / 3
    for i, scene in enumerate(spoken):
        _draw_spoken(canvas, scene, _MARGIN + i * (width + 2 * _GAP), top + 16, width)
    for i, request in enumerate(requests):
        _draw_request(canvas, request, _MARGIN + 2 * (width + 2 * _GAP), top + 25 + 96 * i, width)
    if not spoken and not requests:
        canvas.text(_MARGIN, top + 26, "This run showed nothing that it says or draws.", 12, _SOFT)
    lines: list[tuple[str, str]] = []
    for rate, note in (
        (result.captions.get("exact"), "captions word for word right"),
        (result.answers.get("mean"), "answers right"),
        (result.images.get("recall"), "objects asked for are there"),
    ):
        if rate is not None:
            lines.append((percent(rate.model), f"{note} ({_beside(rate, 'true tokens')})"))
    if "drawn" in result.tokens:
        note = f"tokens an image drawn (true images {decimal(result.tokens['true'], 1)})"
        lines.append((decimal(result.tokens["drawn"], 1), note))
    _draw_lines(canvas, lines, _MARGIN + _LEFT + 42, top)


def _beside(rate: Rate, ceiling: str) -> str:
    most = "" if math.isnan(rate.ceiling) else f"{ceiling} {percent(rate.ceiling)}, "
    return f"{most}chance {percent(rate.chance)}"


def _draw_spoken(canvas: _Canvas, scene: Spoken, x: float, y: float, width: float) -> None:
    side = 64.0
    canvas.paste(Image.fromarray(scene.image), x, y, side, side, Image.Resampling.NEAREST)
    _verdict(canvas, x + side + 10, y + 9, "says:", scene.said == scene.caption, width - side - 10)
    lines = _wrap(scene.said, 10, width - side - 10, 5)
    for line, words in enumerate(lines):
        canvas.text(x + side + 10, y + 24 + 13 * line, words, 10)
    level = y + max(side + 18, 36 + 13 * len(lines))
    for answer in scene.answers[:4]:
        asked = _wrap(answer.question, 10, width - 54, 2)
        for line, words in enumerate(asked):
            canvas.text(x, level + 12 * line, words, 10, _SOFT)
        given = _wrap(answer.given or "nothing", 10, 48, 1)[0]
        canvas.text(x + width, level, given, 10, _BLUE if answer.correct else _AMBER, "rs")
        level += 12 * len(asked) + 5


def _draw_request(canvas: _Canvas, request: Request, x: float, y: float, width: float) -> None:
    _verdict(canvas, x, y, f"asked, drawn in {request.tokens} tokens:", request.prompt == request.read, width)
    lines = _wrap(request.prompt, 10, width, 3)
    for line, words in enumerate(lines):
        canvas.text(x, y + 14 + 13 * line, words, 10)
    if request.prompt != request.read:
        canvas.text(x, y + 14 + 13 * len(lines), _wrap(f"read: {request.read}", 10, width, 1)[0], 10, _AMBER)


def _draw_pixels(canvas: _Canvas, result: PixelsResult, top: float) -> None:
    """The first held-out scenes, each beside what was painted for it in every way, and the rates of the ways."""
    canvas.heading(_MARGIN, top, "Such scenes, painted from tokens")
    width = (_LEFT - 3 * _GAP) / 2
    for i, painting in enumerate(result.paintings[:2]):
        _draw_painting(canvas, painting, _MARGIN + i * (width + 3 * _GAP), top + 27, width)
    if not result.paintings:
        canvas.text(_MARGIN, top + 26, "This run painted no held-out scene.", 12, _SOFT)
    found = {way: rates["recall"] for way, rates in result.ways.items() if "recall" in rates}
    lines = [
        (percent(rate.model), f"objects there, {_named(way)[1]} ({_beside(rate, 'painted again')})")
        for way, rate in found.items()
    ]
    _draw_lines(canvas, lines, _MARGIN + _LEFT + 42, top)


def _draw_painting(canvas: _Canvas, painting: Painting, x: float, y: float, width: float) -> None:
    shown: list[tuple[str, Any, bool | None]] = [("scene", painting.image, None)]
    for way, image in painting.images.items():
        shown.append((_named(way)[0], image, painting.read[way] == painting.true(way)))
    side = min(84, (width - (len(shown) - 1) * 8) / len(shown))
    for i, (what, image, right) in enumerate(shown):
        left = x + i * (side + 8)
        canvas.text(left, y, _wrap(what, 10, side, 1)[0], 10, _SOFT)
        canvas.paste(Image.fromarray(image), left, y + 6, side, side, Image.Resampling.NEAREST)
        if right is not None:
            canvas.text(left, y + side + 18, "right" if right else "wrong", 10, _BLUE if right else _AMBER)
    level = y + side + 34
    said = [("caption", painting.caption), *((_named(way)[0], words) for way, words in painting.words.items())]
    for what, words in said:
        for line in _wrap(f"{what}: {words}", 10, width, 2):
            canvas.text(x, level, line, 10)
            level += 13


def _named(way: str) -> tuple[str, str]:
    return _WAYS.get(way, (way, f"from {way}"))


def _verdict(canvas: _Canvas, x: float, y: float, what: str, right: bool, width: float) -> None:
    canvas.text(x, y, what, 10, _SOFT)
    canvas.text(x + width, y, "right" if right else "wrong", 10, _BLUE if right else _AMBER, "rs")
