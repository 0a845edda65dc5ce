"""Who draws the emoji: a colour font, by Pillow."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageDraw, ImageFont, features

PACKAGE = "fonts-noto-color-emoji"
"""Of Debian and Ubuntu."""

PLACES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
)
LICENCE = (
    "The pictures show Noto Color Emoji, copyright Google Inc., a font under the SIL Open Font License, version 1.1\n"
    "(https://openfontlicense.org; https://github.com/googlefonts/noto-emoji)."
)

_STRIKE = 109  # the size of the font's only bitmaps, 136 x 128 pixels
_WIDE, _HIGH = 136, 128


class Glyphs(Protocol):
    """What draws a sequence of code points as one picture."""

    def draw(self, sequence: str, size: int) -> Image.Image | None:
        """RGBA, size x size pixels, transparent where nothing is drawn; None where there is no single glyph for it."""

    @property
    def about(self) -> dict[str, str]:
        """Where the pictures come from, and their licence."""


class FontGlyphs:
    """The bitmaps of a font such as NotoColorEmoji.ttf.

    path: the font's file; None looks at the usual places. Raises FileNotFoundError where it is not, ValueError for a
    font without bitmaps of that size.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = find_font(path)
        try:
            self._font = ImageFont.truetype(str(self.path), _STRIKE)
        except OSError as error:
            raise ValueError(f"font: expected bitmaps of size {_STRIKE} in {self.path}, got: {error}") from None
        # Pillow's own layout knows no ligatures, so that a sequence would be several glyphs there: it is left out.
        self.sequences = bool(features.check("raqm"))
        self._native = lru_cache(maxsize=8)(self._draw)

    def draw(self, sequence: str, size: int) -> Image.Image | None:
        glyph = self._native(sequence)
        if glyph is None:
            return None
        high = max(1, round(size * _HIGH / _WIDE))
        drawn = Image.new("RGBA", (size, size))
        drawn.paste(glyph.resize((size, high), Image.Resampling.LANCZOS), (0, (size - high) // 2))
        return drawn

    @property
    def about(self) -> dict[str, str]:
        digest = hashlib.blake2b(self.path.read_bytes(), digest_size=16).hexdigest()
        return {"font": self.path.name, "blake2b": digest, "licence": LICENCE.replace("\n", " ")}

    def _draw(self, sequence: str) -> Image.Image | None:
        try:
            if self._font.getbbox(sequence) != (0, 0, _WIDE, _HIGH):
                return None
        except RuntimeError:  # a character that raqm does not lay out
            return None
        canvas = Image.new("RGBA", (_WIDE, _HIGH))
        ImageDraw.Draw(canvas).text((0, 0), sequence, font=self._font, embedded_color=True)
        # Pasted over transparent black: the colours are multiplied by their opacity.
        return Image.frombytes("RGBa", canvas.size, canvas.tobytes()).convert("RGBA")


def find_font(path: str | os.PathLike[str] | None = None) -> Path:
    """The font's file. Raises FileNotFoundError, naming the package that has it."""
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"font: there is no file {os.fspath(path)}")
        return Path(path)
    for place in PLACES:
        if Path(place).is_file():
            return Path(place)
    raise FileNotFoundError(f"font: no NotoColorEmoji.ttf in the usual places; install {PACKAGE}, or name it by --font")
