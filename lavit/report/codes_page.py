"""What the codes of a folder mean, as a page and as a picture: for each code the patches that chose it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from lavit.data.atomic_write import atomic_write
from lavit.evaluation.code_patches import Code, CodePatches
from lavit.report.format import decimal, integer, percent
from lavit.report.html import environment
from lavit.report.plots import INK, SOFT, drawable

TILE = 56
"""The least side of a patch with what is around it, as it is shown, in pixels."""
COLUMNS = 8
ACROSS = 3
"""Codes side by side in the picture."""
_GAP, _MARGIN, _HEAD = 3, 24, 40
_PAPER = (255, 255, 255)


def write_codes(found: CodePatches, path: str | os.PathLike[str], about: Mapping[str, str]) -> None:
    """Write the page to ``path``: one HTML file with everything in it. about: see `render_codes`."""
    with atomic_write(path, "w") as file:
        file.write(render_codes(found, about))


def render_codes(found: CodePatches, about: Mapping[str, str]) -> str:
    """The page as text. about: name -> value of what it was made from: "model", "folder", versions, ..."""
    sheets = {code.number: draw_patches(code, found) for code in found.codes}
    return environment().get_template("codes.html.j2").render(
        found=found,
        sheets=sheets,
        about=about,
        counts=found.counts.tolist(),
        never=len(found.counts) - found.used,
        shown=sum(code.share for code in found.codes),
        explained=1 - found.within / found.variance if found.variance else math.nan,
        relative={code.number: code.variance / found.variance if found.variance else math.nan for code in found.codes},
    )  # fmt: skip


def draw_patches(code: Code, found: CodePatches, columns: int = COLUMNS) -> Image.Image:
    """The patches of a code in rows, each in a thin outline with what is around it, their pixels left visible."""
    side = code.patches.shape[1] if len(code.patches) else found.patch + 2 * found.context
    factor = max(1, -(-TILE // side))
    tile, frame = side * factor, found.context * factor
    rows = max(1, -(-len(code.patches) // columns))
    sheet = Image.new("RGBA", (columns * (tile + _GAP) - _GAP, rows * (tile + _GAP) - _GAP), (0, 0, 0, 0))
    pen = ImageDraw.Draw(sheet)
    for place, patch in enumerate(code.patches):
        x, y = (place % columns) * (tile + _GAP), (place // columns) * (tile + _GAP)
        sheet.paste(Image.fromarray(np.repeat(np.repeat(patch, factor, 0), factor, 1)), (x, y))
        if found.context:
            # Just outside of the patch, so that none of its pixels is covered; dark in light, seen on any picture.
            for out, shade in ((1, "black"), (2, "white")):
                low, high = frame - out, frame + found.patch * factor + out - 1
                pen.rectangle((x + low, y + low, x + high, y + high), outline=shade)
    return sheet


def draw_codes(found: CodePatches) -> Image.Image:
    """All codes as one picture: columns of rows of patches, each with its code's share and figures above it."""
    strips = [draw_patches(code, found, COLUMNS) for code in found.codes]
    width = max((strip.width for strip in strips), default=TILE * COLUMNS)
    row = _HEAD + max((strip.height for strip in strips), default=0) + 18
    rows = -(-len(strips) // ACROSS)
    page = Image.new("RGB", (_MARGIN + ACROSS * (width + _MARGIN), 2 * _MARGIN + 44 + rows * row), _PAPER)
    pen = ImageDraw.Draw(page)
    small, middle, large = (ImageFont.truetype(findfont("DejaVu Sans"), size) for size in (12, 15, 20))
    title = f"{len(found.codes)} most used of {integer(len(found.counts))} codes, {integer(found.tokens)} tokens"
    pen.text((_MARGIN, _MARGIN), drawable(f"{title} of {integer(found.images)} pictures"), INK, large)
    for number, (code, strip) in enumerate(zip(found.codes, strips, strict=True)):
        x, y = _MARGIN + number % ACROSS * (width + _MARGIN), _MARGIN + 44 + number // ACROSS * row
        pen.text((x, y), f"code {code.number}", INK, middle)
        said = f"{percent(code.share)} of tokens, cosine {decimal(code.cosine)}, pixel variance {relative(code, found)}"
        pen.text((x + width, y + 3), drawable(said), SOFT, small, anchor="ra")
        page.paste(strip, (x, y + 26), strip)
    return page


def relative(code: Code, found: CodePatches) -> str:
    """The variance within the code, as a share of that of all patches."""
    return percent(code.variance / found.variance) if found.variance else decimal(math.nan)
