"""The emoji of a font, and each of them on backgrounds: what is true of every picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from examples.emoji.colours import BACKGROUNDS, LOW_CONTRAST, MainColour, main_colour, seen_shares
from examples.emoji.colours import SHADES as COLOURS
from examples.emoji.glyphs import Glyphs
from examples.emoji.names import PERSON, SHADES, Emoji, candidates
from examples.emoji.people import NO_TONE

SIZES = (32, 64, 96, 128)
MARGIN = 1 / 16
"""Of a picture's side, left free at each side, so that corners show the background."""

_MEASURED = 32  # the side in pixels of the drawing that colours are computed from, whatever the pictures' size
_OPAQUE = 128
_LOW_CONTRAST_KEPT = 0.5  # of the backgrounds on which an emoji is hardly seen


@dataclass(frozen=True)
class Drawing:
    """An emoji of the font. seen: share of its pixels seen on each background, by name."""

    emoji: Emoji
    colour: MainColour
    seen: dict[str, float] = field(hash=False)


@dataclass(frozen=True)
class Picture:
    """A drawing on a background."""

    drawing: Drawing
    background: str

    @property
    def emoji(self) -> Emoji:
        return self.drawing.emoji

    @property
    def file(self) -> str:
        return f"{self.emoji.slug}--{self.background}.png"

    @property
    def caption(self) -> str:
        """Such as "woman firefighter with medium skin tone on green"."""
        return f"{self.emoji.full_name} on {self.background}"

    @property
    def low_contrast(self) -> bool:
        return self.drawing.seen[self.background] < LOW_CONTRAST


@dataclass(frozen=True)
class Found:
    """drawings: in a fixed order. same: emoji left out because another has the same picture, with that one's name."""

    drawings: list[Drawing]
    same: list[tuple[str, str]]


def chance(seed: int, *words: str) -> float:
    """A number in [0, 1) that depends on the seed and the words alone."""
    digest = hashlib.blake2b("\0".join([str(seed), *words]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def find_emoji(glyphs: Glyphs) -> Found:
    """All emoji that ``glyphs`` can draw, each picture and each name once."""
    drawings: list[Drawing] = []
    same: list[tuple[str, str]] = []
    pixels: dict[bytes, str] = {}
    names: set[str] = set()
    for untoned, tones in candidates():
        first = len(drawings)
        for emoji in (untoned, *tones):
            glyph = glyphs.draw(emoji.sequence, _MEASURED)
            if glyph is None:
                break  # what has not the first skin tone has none
            if (colour := main_colour(rgb := opaque_pixels(glyph))) is None:
                continue
            emoji = without_shade(emoji, colour)
            key = hashlib.blake2b(glyph.tobytes(), digest_size=16).digest()
            if key in pixels or emoji.slug in names:
                same.append((emoji.full_name, pixels.get(key, emoji.full_name)))
                continue
            pixels[key] = emoji.full_name
            names.add(emoji.slug)
            drawings.append(Drawing(emoji, as_named(colour, emoji.name), seen_shares(rgb)))
        drawings[first:] = _without_tone(drawings[first:])
    return Found(drawings, same)


def _without_tone(group: list[Drawing]) -> list[Drawing]:
    """An emoji and its toned forms: where there are some, what has none says so, and is of their kind."""
    kind = next((each.emoji.kind for each in group if each.emoji.tone), None)
    if kind is None:
        return group
    return [
        each if each.emoji.tone else replace(each, emoji=replace(each.emoji, tone=NO_TONE, kind=kind)) for each in group
    ]


def without_shade(emoji: Emoji, colour: MainColour) -> Emoji:
    """In older names "black" and "white" say filled and outlined (HEAVY BLACK HEART is red): such a word goes, unless
    the picture has that colour."""
    if emoji.kind == PERSON or (len(emoji.sequence) > 1 and not emoji.tone):
        return emoji  # our own words
    true = "" if emoji.tone else colour.name
    words = [word for word in emoji.name.split() if word not in SHADES or word == true]
    name = " ".join(words)
    return replace(emoji, name=name, base=name if emoji.base == emoji.name else emoji.base)


def as_named(colour: MainColour, name: str) -> MainColour:
    """A colour is not clear where the name says another: some red triangles are drawn orange."""
    said = set(name.split()) & set(COLOURS)
    return replace(colour, clear=False) if said and colour.name not in said else colour


def opaque_pixels(glyph: Image.Image) -> np.ndarray:
    """(n, 3) uint8 of an RGBA drawing."""
    pixels = np.asarray(glyph).reshape(-1, 4)
    return pixels[pixels[:, 3] >= _OPAQUE, :3]


def backgrounds(drawing: Drawing, seed: int) -> list[str]:
    """All backgrounds, in an order that the seed and the emoji's name decide.

    Most on which it is hardly seen come last; half of them keep their place, for such pictures exist.
    """
    name = drawing.emoji.full_name
    order = sorted(BACKGROUNDS, key=lambda background: chance(seed, "background", name, background))
    hard = {
        background
        for background in order
        if drawing.seen[background] < LOW_CONTRAST and chance(seed, "hard", name, background) >= _LOW_CONTRAST_KEPT
    }
    return [b for b in order if b not in hard] + [b for b in order if b in hard]


def compose(glyph: Image.Image, background: str, size: int) -> Image.Image:
    """An RGBA glyph, in the middle of size x size pixels of a background: RGB."""
    picture = Image.new("RGB", (size, size), BACKGROUNDS[background])
    picture.paste(glyph, tuple((size - side) // 2 for side in glyph.size), glyph)  # type: ignore[arg-type]
    return picture


def glyph_size(size: int) -> int:
    """The side of the glyph in a picture, in pixels."""
    return size - 2 * round(size * MARGIN)


def render(glyphs: Glyphs, pictures: Sequence[Picture], size: int) -> list[Image.Image]:
    """The pictures, size x size pixels."""
    images = []
    for picture in pictures:
        glyph = glyphs.draw(picture.emoji.sequence, glyph_size(size))
        if glyph is None:
            raise ValueError(f"glyphs: there is none for {picture.emoji.full_name} ({picture.emoji.code_points})")
        images.append(compose(glyph, picture.background, size))
    return images
