"""The picture of a run for a README: what was kept of scenes and photographs, tokens against content, what the language
model said and drew, and what was painted, as a PNG by matplotlib."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from lavit.data.atomic_write import atomic_write
from lavit.report.format import decimal, duration, integer, percent
from lavit.report.plots import AMBER, BLUE, INK, SOFT, draw_strip, drawable, drawing
from lavit.report.result import LanguageResult, Photo, PixelsResult, QuickstartResult, Rate, Scene, mean_of, mean_tokens
from lavit.report.token_map import draw_token_map

WIDTH, HEIGHT = 960, 520
LANGUAGE_HEIGHT = 264  # more, where a language model was trained
PIXELS_HEIGHT = 204  # more, where a U-Net was trained
_SCALE = 2  # pixels for each unit of the layout, so that text stays sharp on a dense screen
_POINT = 0.72  # points for each unit: a hundred are an inch
_MARGIN, _LEFT, _GAP = 30, 570, 12
_SMALL, _TITLE = 9.4, 14  # sizes of text
_RIGHT = _MARGIN + _LEFT + 42  # where the chart and the numbers begin
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
    below = HEIGHT + (LANGUAGE_HEIGHT if result.language else 0)
    with drawing(size=10.5 * _POINT):
        page = _Page(below + (PIXELS_HEIGHT if result.pixels else 0))
        _draw_scenes(page, spread(result.scenes, 4), result.grid)
        _draw_photos(page, result.photos, result.grid, 312 if result.scenes else 96)
        _draw_content(page, result)
        _draw_numbers(page, result)
        if result.language:
            _draw_language(page, result.language, HEIGHT + 14)
        if result.pixels:
            _draw_pixels(page, result.pixels, below + 14)
        page.canvas.draw()
        return Image.fromarray(np.asarray(page.canvas.buffer_rgba())).convert("RGB")


def spread(scenes: Sequence[Scene], most: int) -> list[Scene]:
    """At most ``most`` scenes from the fewest to the most tokens, evenly over that order: not the best ones."""
    ordered = sorted(scenes, key=lambda scene: scene.tokens)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]


class _Page:
    """A figure in layout units from the upper left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure((WIDTH / 100, height / 100), dpi=100 * _SCALE)
        self.canvas = FigureCanvasAgg(self.figure)

    def text(self, x: float, y: float, words: str, ink: str = INK, size: float = _SMALL, ha: str = "left") -> Text:
        place = x / WIDTH, 1 - y / self.height
        return self.figure.text(*place, drawable(words), size=size * _POINT, color=ink, ha=ha, va="baseline")

    def lines(self, x: float, y: float, words: str, width: float, most: int, ink: str = INK) -> float:
        """Words in at most ``most`` lines of about ``width``. Returns where the next would be."""
        for line in textwrap.wrap(drawable(words), round(width / 5.1), max_lines=most, placeholder=" …"):
            left, right, low = x * _SCALE, (x + width + _GAP) * _SCALE, (self.height - y - 5) * _SCALE
            self.text(x, y, line, ink).set(clip_on=True, clip_box=Bbox([(left, low), (right, low + 20 * _SCALE)]))
            y += 13
        return y

    def verdict(self, x: float, y: float, right: bool, ha: str = "right") -> None:
        self.text(x, y, "✓ right" if right else "✗ wrong", BLUE if right else AMBER, ha=ha)

    def picture(self, image: Image.Image | np.ndarray, x: float, y: float, width: float, height: float) -> None:
        """A picture is smoothed, an array keeps its pixels visible."""
        how = Image.Resampling.LANCZOS if isinstance(image, Image.Image) else Image.Resampling.NEAREST
        size = round(width * _SCALE), round(height * _SCALE)
        pixels = np.asarray(Image.fromarray(np.asarray(image)).resize(size, how))
        bottom = round(self.height * _SCALE) - round(y * _SCALE) - len(pixels)
        self.figure.figimage(pixels, round(x * _SCALE), bottom, origin="upper")

    def numbers(self, numbers: Sequence[tuple[str, str]], top: float) -> None:
        """Numbers, and what they are, in the column on the right."""
        for i, (number, note) in enumerate(numbers):
            y, ends = top + 34 * i, (_RIGHT / WIDTH, 1 - _MARGIN / WIDTH)
            rule = Line2D(ends, [1 - (y - 23) / self.height] * 2, color="#e2e0da", linewidth=_POINT)
            self.figure.add_artist(rule)
            self.text(_RIGHT, y, number, BLUE, 15.5)
            self.lines(_RIGHT + 104, y - 7, note, WIDTH - _MARGIN - _RIGHT - 104, 2, SOFT)


def _draw_scenes(page: _Page, scenes: Sequence[Scene], grid: tuple[int, int]) -> None:
    page.text(_MARGIN, 44, "What it keeps of scenes that it has never seen", size=_TITLE)
    if not scenes:
        page.text(_MARGIN, 70, "This run tokenized no held-out scene.", SOFT)
    side = (_LEFT - 3 * _GAP) / 4
    for i, scene in enumerate(scenes):
        x, y = _MARGIN + i * (side + _GAP), 58 + side
        page.picture(draw_token_map(Image.fromarray(scene.image), scene.keep, grid), x, 58, side, side)
        page.text(x, y + 24, _count(scene), size=15.5)
        page.verdict(x + side, y + 24, scene.correct)
        page.text(x, y + 40, "read back from the tokens:", SOFT)
        page.lines(x, y + 54, scene.read_back, side, 4)


def _draw_photos(page: _Page, photos: Sequence[Photo], grid: tuple[int, int], top: float) -> None:
    page.text(_MARGIN, top, "… and of photographs, having learned from drawn shapes alone", size=_TITLE)
    if not photos:
        page.text(_MARGIN, top + 26, "No photographs in this run.", SOFT)
        return
    maps = [draw_token_map(Image.fromarray(photo.image), photo.keep, grid) for photo in photos]
    # As many as make one row of the whole width, at the most as high as there is room.
    heights = (_LEFT - _GAP * np.arange(len(maps))) / np.cumsum([drawn.width / drawn.height for drawn in maps])
    x, y, most = float(_MARGIN), top + 14, HEIGHT - _MARGIN - 34 - top
    last = next((i for i, height in enumerate(heights) if height <= most), len(maps) - 1)
    height = min(heights[last], most)
    for photo, drawn in zip(photos[: last + 1], maps, strict=False):
        width = height * drawn.width / drawn.height
        page.picture(drawn, x, y, width, height)
        page.text(x, y + height + 17, _count(photo))
        x += width + _GAP


def _count(of: Scene | Photo) -> str:
    return f"{of.tokens} token{'' if of.tokens == 1 else 's'}"


def _draw_content(page: _Page, result: QuickstartResult) -> None:
    page.text(_RIGHT, 44, "Tokens against objects in the scene", size=_TITLE)
    groups = {f"{n} object{'' if n == 1 else 's'}": result.content[n] for n in mean_tokens(result.content)}
    if not groups:
        page.text(_RIGHT, 70, "This run counted no tokens.", SOFT)
        return
    left, width = _RIGHT + 22, WIDTH - _MARGIN - _RIGHT - 22
    axes = page.figure.add_axes((left / WIDTH, 1 - 270 / page.height, width / WIDTH, 206 / page.height))
    draw_strip(axes, groups, width * _POINT, 3.2 * _POINT)


def _draw_numbers(page: _Page, result: QuickstartResult) -> None:
    numbers = []
    if result.cosines:
        numbers.append((decimal(mean_of(result.cosines)), "cosine of rebuilt and true features"))
    for row in result.probe[:2]:
        numbers.append((percent(row.tokens), f"{row.what}, from tokens (encoder {percent(row.encoder)})"))
    if result.code_counts:
        used = sum(1 for n in result.code_counts if n)
        numbers.append((integer(used), f"of {integer(len(result.code_counts))} codes in use"))
    threads = "1 thread" if result.threads == 1 else f"{result.threads} threads"
    page.numbers([*numbers, (duration(result.seconds), f"in all, on {result.device}, {threads}")], 330)


def _draw_language(page: _Page, result: LanguageResult, top: float) -> None:
    """The first held-out scenes in the model's words, the first requests, and the rates, in four columns."""
    page.text(_MARGIN, top, "What the language model says of such scenes, and draws when asked", size=_TITLE)
    width, side = (_LEFT - 4 * _GAP) / 3, 64
    if not result.spoken and not result.requests:
        page.text(_MARGIN, top + 26, "This run showed nothing that it says or draws.", SOFT)
    for i, scene in enumerate(result.spoken[:2]):
        x, y = _MARGIN + i * (width + 2 * _GAP), top + 16
        page.picture(scene.image, x, y, side, side)
        page.text(x + side + 10, y + 9, "says:", SOFT)
        page.verdict(x + width, y + 9, scene.said == scene.caption)
        level = max(page.lines(x + side + 10, y + 24, scene.said, width - side - 10, 5) + 12, y + side + 18)
        for answer in scene.answers[:4]:
            given, mark = answer.given or "nothing", "✓" if answer.correct else "✗"
            short = given if len(given) < 10 else f"{given[:8]}…"
            page.text(x + width, level, f"{mark} {short}", BLUE if answer.correct else AMBER, ha="right")
            level = page.lines(x, level, answer.question, width - 70, 2, SOFT) + 4
    for i, request in enumerate(result.requests[:2]):
        x, y, right = _MARGIN + 2 * (width + 2 * _GAP), top + 25 + 96 * i, request.prompt == request.read
        page.text(x, y, f"asked, drawn in {request.tokens} tokens:", SOFT)
        page.verdict(x + width, y, right)
        level = page.lines(x, y + 14, request.prompt, width, 3)
        page.lines(x, level, "" if right else f"read: {request.read}", width, 2, AMBER)
    rates = (
        (result.captions.get("exact"), "captions word for word right"),
        (result.answers.get("mean"), "answers right"),
        (result.images.get("recall"), "objects asked for are there"),
    )
    numbers = [(percent(rate.model), f"{note} ({_beside(rate, 'true tokens')})") for rate, note in rates if rate]
    if "drawn" in result.tokens:
        true = decimal(result.tokens["true"], 1)
        numbers.append((decimal(result.tokens["drawn"], 1), f"tokens an image drawn (true images {true})"))
    page.numbers(numbers, top + 24)


def _draw_pixels(page: _Page, result: PixelsResult, top: float) -> None:
    """The first held-out scenes, each beside what was painted for it in every way, and the rates of the ways."""
    page.text(_MARGIN, top, "Such scenes, painted from tokens", size=_TITLE)
    if not result.paintings:
        page.text(_MARGIN, top + 26, "This run painted no held-out scene.", SOFT)
    width = (_LEFT - 3 * _GAP) / 2
    for i, one in enumerate(result.paintings[:2]):
        x, y, count = _MARGIN + i * (width + 3 * _GAP), top + 27, 1 + len(one.images)
        side = min(84, (width - (count - 1) * 8) / count)
        page.text(x, y, "scene", SOFT)
        page.picture(one.image, x, y + 6, side, side)
        for n, (way, image) in enumerate(one.images.items(), 1):
            left = x + n * (side + 8)
            page.lines(left, y, _name(way)[0], side, 1, SOFT)
            page.picture(image, left, y + 6, side, side)
            page.verdict(left, y + side + 18, one.read[way] == one.true(way), "left")
        level = page.lines(x, y + side + 34, f"caption: {one.caption}", width, 2)
        for way, words in one.words.items():
            level = page.lines(x, level, f"{_name(way)[0]}: {words}", width, 2)
    rates = {way: rates["recall"] for way, rates in result.ways.items() if "recall" in rates}.items()
    notes = [f"objects there, {_name(way)[1]} ({_beside(rate, 'again')})" for way, rate in rates]
    page.numbers([(percent(rate.model), note) for (_, rate), note in zip(rates, notes, strict=True)], top + 24)


def _name(way: str) -> tuple[str, str]:
    return _WAYS.get(way, (way, f"from {way}"))


def _beside(rate: Rate, ceiling: str) -> str:
    most = "" if math.isnan(rate.ceiling) else f"{ceiling} {percent(rate.ceiling)}, "
    return f"{most}chance {percent(rate.chance)}"
