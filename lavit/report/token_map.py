"""Pictures of what the tokenizer kept: the image with its dropped patches faded. Pixel for pixel, so by Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lavit.report.format import whole_letters

OUTLINE = (255, 122, 0)
SMALLEST, LARGEST = 448, 1024  # long side of a map, pixels
_INK, _PAPER = (32, 32, 32), (255, 255, 255)


def draw_token_map(
    image: Image.Image,
    keep: Tensor | np.ndarray | Sequence[bool],
    grid: tuple[int, int],
    tokens: Tensor | np.ndarray | Sequence[int] | None = None,
) -> Image.Image:
    """The image with kept patches clear in a thin outline, dropped ones grey and pale.

    image: what the tokenizer sees of it (`LaVITImageProcessor.seen`), of any size; the map's long side is between 448
        and 1024 pixels: smaller images are enlarged with their pixels left visible, larger ones reduced.
    keep: (h * w,) in raster order, true where the patch is kept. grid: (h, w) patches; they divide the image evenly
        whatever its shape, as the tokenizer may squeeze it into a square.
    tokens: the code of each kept patch in raster order; written into the patches where they are large enough.

    Returns RGB. ValueError where keep, grid and tokens do not fit together.
    """
    height, width = grid
    if height < 1 or width < 1:
        raise ValueError(f"grid: expected at least one row and column, got {grid}")
    kept = keep.bool().cpu().numpy() if isinstance(keep, Tensor) else np.asarray(keep, bool)
    if kept.shape != (height * width,):
        raise ValueError(f"keep: expected shape ({height * width},) for the grid {grid}, got {kept.shape}")
    codes = None if tokens is None else np.asarray(tokens.cpu() if isinstance(tokens, Tensor) else tokens)
    if codes is not None and codes.shape != (kept.sum(),):
        raise ValueError(f"tokens: expected one for each of {kept.sum()} kept patches, got shape {codes.shape}")
    kept = kept.reshape(grid)
    picture = image.convert("RGB")
    if max(picture.size) < SMALLEST:  # a whole factor and no smoothing: its pixels stay what they are
        factor = -(-SMALLEST // max(picture.size))
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture = shrink(picture, LARGEST)
    columns = np.round(np.linspace(0, picture.width, width + 1)).astype(int)
    rows = np.round(np.linspace(0, picture.height, height + 1)).astype(int)

    pale = picture.convert("L").point([int(168 + 0.3 * v) for v in range(256)]).convert("RGB")
    mask = np.repeat(np.repeat(kept, np.diff(rows), 0), np.diff(columns), 1)
    pale.paste(picture, mask=Image.fromarray(mask.astype(np.uint8) * 255))

    draw = ImageDraw.Draw(pale)
    line = max(1, round(max(picture.size) / 512))
    font = _font_for(codes, int(np.diff(columns).min()), int(np.diff(rows).min())) if codes is not None else None
    for number, (i, j) in enumerate(np.argwhere(kept)):
        # Neighbours share their line.
        box = (columns[j], rows[i], min(columns[j + 1], pale.width - 1), min(rows[i + 1], pale.height - 1))
        if min(box[2] - box[0], box[3] - box[1]) >= 3 * line:
            draw.rectangle(box, outline=OUTLINE, width=line)
        if font is not None and codes is not None:
            centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            draw.text(centre, str(codes[number]), _PAPER, font, anchor="mm", stroke_width=2, stroke_fill=_INK)
    return pale


def draw_sheet(maps: Sequence[Image.Image], labels: Sequence[str], tile: int = 256) -> Image.Image:
    """Several maps side by side, each within ``tile`` pixels, its label below it. Returns RGB on white.

    ValueError without maps or with another number of labels.
    """
    if not maps or len(maps) != len(labels):
        raise ValueError(f"labels: expected one for each of at least one map, got {len(labels)} for {len(maps)}")
    gap, text = max(4, tile // 24), max(12, tile // 16)
    font = ImageFont.load_default(text)
    columns = min(len(maps), max(1, round(len(maps) ** 0.5 * 1.2)))
    small = [shrink(m, tile) for m in maps]
    heights = [max(m.height for m in small[n : n + columns]) for n in range(0, len(small), columns)]
    size = (columns * (tile + gap) + gap, sum(heights) + len(heights) * (2 * text + gap) + gap)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (picture, label) in enumerate(zip(small, labels, strict=True)):
        row, column = divmod(number, columns)
        base = gap + sum(heights[: row + 1]) + row * (2 * text + gap)
        centre = gap + column * (tile + gap) + tile / 2
        sheet.paste(picture, (int(centre - picture.width / 2), base - picture.height))
        draw.text((centre, base + text / 3), _fit(whole_letters(label), font, tile), _INK, font, anchor="ma")
    return sheet


def shrink(image: Image.Image, side: int) -> Image.Image:
    """The image with a long side of at most ``side``; a smaller one is returned as it is."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)


def _font_for(codes: np.ndarray, width: int, height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont | None:
    """The largest legible font in which the longest code fits a patch, None if there is none."""
    longest = max(map(str, codes), key=len, default="")
    fonts = map(ImageFont.load_default, range(min(24, height // 2), 8, -1))
    return next((font for font in fonts if font.getlength(longest) <= width - 6), None)


def _fit(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The label, its middle left out where it is too long: file names differ at both ends."""
    size, short = len(label), label
    while font.getlength(short) > width and size > 1:
        size -= 1
        short = f"{label[: size // 2]}…{label[len(label) - (size - size // 2) :]}"
    return short
