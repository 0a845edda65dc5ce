"""Items with the least and the highest scores of an evaluation, as one picture to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Protocol, TypeVar

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from lavit.data.images import ImageError, load_image
from lavit.report.plots import INK, SOFT, drawable

SIDE, GAP, MARGIN, LINE, LINES, COLUMNS = 176, 14, 24, 15, 6, 6
_LETTER = 6.6  # the width of one, on the average


class Item(Protocol):
    """`lavit.evaluation.tasks.Shown` is one: picture files side by side, a score and how it is told, and texts."""

    @property
    def pictures(self) -> Sequence[str]: ...
    @property
    def score(self) -> float: ...
    @property
    def told(self) -> str: ...
    @property
    def words(self) -> Sequence[str]: ...


class Scored(Protocol):
    @property
    def score(self) -> float: ...


T = TypeVar("T", bound=Scored)


def extremes(items: Sequence[T], count: int) -> tuple[list[T], list[T]]:
    """The ``count`` items of the least score and of the highest, none in both: the worst first and the best first.
    Among equals the order is theirs."""
    ordered = sorted(items, key=lambda item: item.score)
    worst = ordered[: min(count, (len(ordered) + 1) // 2)]
    rest = ordered[len(worst) :]
    best = sorted(rest, key=lambda item: -item.score)[:count]
    return worst, best


def draw_sheet(sections: Sequence[tuple[str, Sequence[Item]]]) -> Image.Image:
    """Sections below each other, each with its title and rows of items: the pictures, the score, the texts.

    A picture that cannot be read is an empty frame that says so; an empty section says that it is.
    """
    wide = max((len(item.pictures) for _, items in sections for item in items), default=1)
    columns = max(2, COLUMNS // wide)
    cell = wide * SIDE + (wide - 1) * 4
    height = MARGIN + sum(34 + _rows(items, columns) * _row() for _, items in sections)
    page = Image.new("RGB", (2 * MARGIN + columns * cell + (columns - 1) * GAP, height + MARGIN), "white")
    pen = ImageDraw.Draw(page)
    small, large = (ImageFont.truetype(findfont("DejaVu Sans"), size) for size in (11, 17))
    top = MARGIN
    for title, items in sections:
        pen.text((MARGIN, top), drawable(title), fill=INK, font=large)
        top += 34
        if not items:
            pen.text((MARGIN, top), "none", fill=SOFT, font=small)
        for number, item in enumerate(items):
            left, y = MARGIN + number % columns * (cell + GAP), top + number // columns * _row()
            for place, path in enumerate(item.pictures):
                _paste(page, pen, path, left + place * (SIDE + 4), y, small)
            pen.text((left, y + SIDE + 4), drawable(item.told), fill=INK, font=small)
            lines = [line for text in item.words for line in textwrap.wrap(drawable(text), round(cell / _LETTER))]
            if len(lines) >= LINES:
                lines = [*lines[: LINES - 2], f"{lines[LINES - 2][:-2]} …"]
            for place, line in enumerate(lines, 1):
                pen.text((left, y + SIDE + 4 + place * LINE), line, fill=SOFT, font=small)
        top += _rows(items, columns) * _row()
    return page


def _rows(items: Sequence[Item], columns: int) -> int:
    return max(1, -(-len(items) // columns))


def _row() -> int:
    return SIDE + 4 + LINES * LINE + GAP


def _paste(page: Image.Image, pen: ImageDraw.ImageDraw, path: str, left: int, top: int, font: object) -> None:
    """The whole picture in a square frame, in its own proportions; small ones with their pixels visible."""
    pen.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline="#e2e0da")
    try:
        picture = load_image(path)
    except ImageError:
        pen.text((left + 8, top + 8), "cannot be read", fill=SOFT, font=font)  # type: ignore[arg-type]
        return
    scale = SIDE / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    drawn = picture.resize((size[0], size[1]), how)
    page.paste(drawn, (left + (SIDE - size[0]) // 2, top + (SIDE - size[1]) // 2))
