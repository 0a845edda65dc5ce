"""Pictures of what the tokenizer kept: the image with its dropped patches faded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

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

    image: any size; the map's long side is between 448 and 1024 pixels: smaller images are enlarged with their pixels
        left visible, larger ones reduced.
    keep: (h * w,) in raster order, true where the patch is kept. grid: (h, w) patches; they divide the image evenly
        whatever its shape, as the tokenizer squeezes every image into a square.
    tokens: the code of each kept patch in raster order; written into the patches where they are large enough.

    Returns RGB. ValueError where keep, grid and tokens do not fit together.
    """
    height, width = grid
    kept = _kept(keep, height, width)
    codes = None if tokens is None else np.asarray(tokens.cpu() if isinstance(tokens, Tensor) else tokens)
    if codes is not None and codes.shape != (int(kept.sum()),):
        raise ValueError(f"tokens: expected one for each of {int(kept.sum())} kept patches, got shape {codes.shape}")
    picture = _resized(image.convert("RGB"))
    columns = _edges(picture.width, width)
    rows = _edges(picture.height, height)

    pale = picture.convert("L").point([int(168 + 0.3 * v) for v in range(256)]).convert("RGB")
    mask = Image.fromarray(np.repeat(np.repeat(kept, np.diff(rows), 0), np.diff(columns), 1).astype(np.uint8) * 255)
    pale.paste(picture, mask=mask)

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
    font = _font(text)
    columns = min(len(maps), max(1, round(len(maps) ** 0.5 * 1.2)))
    small = [shrink(m, tile) for m in maps]
    rows = [range(start, min(start + columns, len(maps))) for start in range(0, len(maps), columns)]
    heights = [max(small[n].height for n in row) for row in rows]
    size = (columns * (tile + gap) + gap, sum(heights) + len(rows) * (2 * text + gap) + gap)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, number in enumerate(row):
            picture, centre = small[number], gap + column * (tile + gap) + tile / 2
            sheet.paste(picture, (int(centre - picture.width / 2), top + height - picture.height))
            draw.text((centre, top + height + text / 3), _fit(labels[number], font, tile), _INK, font, anchor="ma")
        top += height + 2 * text + gap
    return sheet


def shrink(image: Image.Image, side: int) -> Image.Image:
    """The image with a long side of at most ``side``; a smaller one is returned as it is."""
    if max(image.size) <= side:
        return image
    scale = side / max(image.size)
    return image.resize(_scaled(image, scale), Image.Resampling.LANCZOS, reducing_gap=3)


def _kept(keep: Tensor | np.ndarray | Sequence[bool], height: int, width: int) -> np.ndarray:
    values = keep.detach().cpu().float().numpy() if isinstance(keep, Tensor) else np.asarray(keep)
    if height < 1 or width < 1:
        raise ValueError(f"grid: expected at least one row and column, got {(height, width)}")
    if values.shape != (height * width,):
        raise ValueError(f"keep: expected shape ({height * width},) for the grid {(height, width)}, got {values.shape}")
    return values.astype(bool).reshape(height, width)


def _resized(image: Image.Image) -> Image.Image:
    long = max(image.size)
    if long > LARGEST:
        return shrink(image, LARGEST)
    if long >= SMALLEST:
        return image
    # A whole factor and no smoothing: the pixels of a small image stay what they are.
    return image.resize(_scaled(image, -(-SMALLEST // long)), Image.Resampling.NEAREST)


def _scaled(image: Image.Image, scale: float) -> tuple[int, int]:
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _edges(length: int, parts: int) -> np.ndarray:
    return np.round(np.linspace(0, length, parts + 1)).astype(int)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _font_for(codes: np.ndarray, width: int, height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont | None:
    """The largest legible font in which the longest code fits a patch, None if there is none."""
    longest = str(max(codes, key=lambda c: len(str(c)))) if len(codes) else ""
    for size in range(min(24, height // 2), 8, -1):
        font = _font(size)
        if font.getlength(longest) <= width - 6:
            return font
    return None


def _fit(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The label, its middle left out where it is too long: file names differ at both ends."""
    if font.getlength(label) <= width:
        return label
    for size in range(len(label) - 1, 1, -1):
        short = f"{label[: size // 2]}…{label[len(label) - (size - size // 2) :]}"
        if font.getlength(short) <= width:
            return short
    return "…"
