"""Glyphs that need no font: a square of one colour for each sequence, with a dot of another."""

from __future__ import annotations

import hashlib

from PIL import Image

from examples.emoji.people import BLOND, DOING, JOINER, NOUNS, SINGLE, TONES

PEOPLE = frozenset([*SINGLE, *NOUNS, *DOING, BLOND])
HANDS = frozenset(map(chr, range(0x1F446, 0x1F451)))
FACES = frozenset(map(chr, range(0x1F600, 0x1F610)))
THINGS = frozenset(map(chr, range(0x1F330, 0x1F380))) | {"❤", "⬛", "⬜", "💕"}
ALIKE = {"🇲🇫": "🇫🇷", **{"🏂" + tone: "🏂" for tone in TONES.values()}}
"""What has the picture of another sequence, as in real fonts."""
COLOURS = {"❤": (214, 48, 48), "⬛": (20, 20, 20), "⬜": (250, 250, 250)}


class PlainGlyphs:
    """Has people, and hands, with all tones, and some of the rest. missing: sequences that it has not."""

    about = {"font": "none", "licence": "none"}

    def __init__(self, missing: frozenset[str] = frozenset()) -> None:
        self.missing = missing

    def draw(self, sequence: str, size: int) -> Image.Image | None:
        if sequence in self.missing or not self._has(sequence):
            return None
        sequence = ALIKE.get(sequence, sequence)
        digest = hashlib.blake2b(sequence.encode(), digest_size=6).digest()
        glyph = Image.new("RGBA", (size, size))
        glyph.paste((*COLOURS.get(sequence, tuple(digest[:3])), 255), (1, 1, size - 1, size - 1))
        glyph.paste((*digest[3:], 255), (size // 2, size // 2, size // 2 + 3, size // 2 + 3))
        return glyph

    def _has(self, sequence: str) -> bool:
        first, rest = sequence[0], sequence[1:]
        if not rest:
            return first in PEOPLE | HANDS | FACES | THINGS
        if rest in TONES.values():
            return first in PEOPLE | HANDS
        return JOINER in rest or not set(rest) & set(TONES.values())
