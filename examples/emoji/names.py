"""Which emoji there may be, and what each is called.

A single code point has its Unicode name, in lower case. A sequence is named from its parts, and tried by construction:
whoever draws the glyphs says which there are.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

from examples.emoji.people import (
    ADULTS,
    BLOND,
    DOING,
    EMOJI,
    FIGURES,
    HAIR,
    JOINER,
    NOUNS,
    OBJECTS,
    PROFESSIONS,
    SIGNS,
    SINGLE,
    TONES,
    UNIFORMED,
)
from examples.emoji.regions import COUNTRIES, REGIONS

PERSON, BODY, FACE, FIGURE, FLAG, KEYCAP, THING = "person", "body", "face", "figure", "flag", "keycap", "thing"
KINDS = (PERSON, BODY, FACE, FIGURE, FLAG, KEYCAP, THING)

OTHERS = {
    "🐕‍🦺": "service dog",
    "🐈‍⬛": "black cat",
    "🐻‍❄️": "polar bear",
    "🐦‍⬛": "black bird",
    "🐦‍🔥": "phoenix",
    "🍋‍🟩": "lime",
    "🍄‍🟫": "brown mushroom",
    "⛓️‍💥": "broken chain",
    "❤️‍🔥": "heart on fire",
    "❤️‍🩹": "mending heart",
    "👁️‍🗨️": "eye in speech bubble",
    "😶‍🌫️": "face in clouds",
    "😮‍💨": "face exhaling",
    "😵‍💫": "face with spiral eyes",
}
FLAGS = {"🏴‍☠️": "pirate flag", "🏳️‍🌈": "rainbow flag", "🏳️‍⚧️": "transgender flag"}

_LETTER = 0x1F1E6  # the regional indicator A
_TAG = 0xE0000
_COMPONENTS = {*range(0x1F1E6, 0x1F200), *map(ord, TONES.values()), *map(ord, HAIR)}
_FACES = {*range(0x1F600, 0x1F645), *range(0x1F910, 0x1F918), *range(0x1F920, 0x1F930), *range(0x1F970, 0x1F97B)}
_FACES |= {0x2639, 0x263A, 0x1F9D0, *range(0x1FAE0, 0x1FAE9)}
_HANDS_AMONG_FACES = {0x1F918, 0x1F919, 0x1F926}
_CATEGORIES = {"So", "Sm", "Po", "Pd", "Ll"}
_RANGES = (range(0xA0, 0x3300), range(0x1F000, 0x1FB00))
SHADES = ("black", "white")
"""Words of Unicode's older names that mean filled and outlined: see `examples.emoji.pictures.without_shade`."""


@dataclass(frozen=True)
class Emoji:
    """What is drawn for ``sequence``, and everything that is true of it.

    name: without the skin tone. base: what all its variants share. tone: "" where it can have none. gender: "woman",
    "man" or "person" where there are variants, else "". hair, profession: "" where it is not about these.
    """

    sequence: str
    name: str
    base: str
    kind: str
    tone: str = ""
    gender: str = ""
    hair: str = ""
    profession: str = ""

    @property
    def full_name(self) -> str:
        """Such as "woman firefighter with medium skin tone"."""
        return f"{self.name} with {self.tone} skin tone" if self.tone in TONES else self.name

    @property
    def slug(self) -> str:
        """The full name as it stands in a file's name."""
        return slug(self.full_name)

    @property
    def code_points(self) -> str:
        """Such as "1F469 1F3FD 200D 1F692"."""
        return " ".join(f"{ord(character):04X}" for character in self.sequence)


def slug(text: str) -> str:
    """Small letters and digits, with hyphens between them."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def candidates() -> Iterator[tuple[Emoji, list[Emoji]]]:
    """(without a skin tone, with each) in a fixed order, all names different."""
    for group in (_people(), _singles(), _flags(), _keycaps(), _others()):
        yield from group


def toned(emoji: Emoji, before: str, after: str = "") -> tuple[Emoji, list[Emoji]]:
    """``emoji`` as it is, and with each tone between two parts of its sequence."""
    return emoji, [replace(emoji, sequence=before + sign + after, tone=tone) for tone, sign in TONES.items()]


def _people() -> Iterator[tuple[Emoji, list[Emoji]]]:
    for sign, (name, base, gender) in SINGLE.items():
        yield toned(Emoji(sign, name, base, PERSON, gender=gender), sign)
    yield toned(Emoji("🧑‍🎄", "mx christmas", "christmas", PERSON, gender="person"), "🧑", f"{JOINER}🎄")
    for gender, adult in ADULTS.items():
        for thing, noun in PROFESSIONS.items():
            after = JOINER + _coloured(thing)
            name = noun if gender == "person" else f"{gender} {noun}"
            yield toned(Emoji(adult + after, name, noun, PERSON, gender=gender, profession=noun), adult, after)
        for thing, words in OBJECTS.items():
            after = JOINER + thing
            yield toned(Emoji(adult + after, f"{gender} {words}", words, PERSON, gender=gender), adult, after)
        for thing, hair in HAIR.items():
            after, words = JOINER + thing, "without hair" if hair == "bald" else f"with {hair} hair"
            emoji = Emoji(adult + after, f"{gender} {words}", words, PERSON, gender=gender, hair=hair)
            yield toned(emoji, adult, after)
        after, words = _sign(gender), "with blond hair"
        emoji = Emoji(BLOND + after, f"{gender} {words}", words, PERSON, gender=gender, hair="blond")
        yield toned(emoji, BLOND, after)
        for base, noun in NOUNS.items():
            name = noun if gender == "person" else f"{gender} {noun}"
            profession = noun if noun in UNIFORMED else ""
            yield toned(Emoji(base + after, name, noun, PERSON, gender=gender, profession=profession), base, after)
        for base, words in DOING.items():
            yield toned(Emoji(base + after, f"{gender} {words}", words, PERSON, gender=gender), base, after)


def _sign(gender: str) -> str:
    return JOINER + SIGNS[gender] + EMOJI if gender in SIGNS else ""


def _coloured(thing: str) -> str:
    """With the sign that asks for the coloured form, where the character has a plain one as well."""
    return thing + EMOJI if ord(thing) < 0x10000 else thing


def _singles() -> Iterator[tuple[Emoji, list[Emoji]]]:
    named = {*SINGLE, *NOUNS, *DOING, BLOND}
    for point in (point for points in _RANGES for point in points):
        sign = chr(point)
        name = unicodedata.name(sign, "").lower()
        if not name or sign in named or point in _COMPONENTS or unicodedata.category(sign) not in _CATEGORIES:
            continue
        kind = FIGURE if sign in FIGURES else FACE if point in _FACES - _HANDS_AMONG_FACES else THING
        emoji, tones = toned(Emoji(sign, name, name, kind), sign)
        yield emoji, [replace(each, kind=BODY) for each in tones]


def _flags() -> Iterator[tuple[Emoji, list[Emoji]]]:
    for code, region in REGIONS.items():
        sequence = "".join(chr(_LETTER + ord(letter) - ord("A")) for letter in code)
        yield Emoji(sequence, f"flag of {region}", f"flag of {region}", FLAG), []
    for code, region in COUNTRIES.items():
        sequence = "🏴" + "".join(chr(_TAG + ord(letter)) for letter in code) + chr(_TAG + 0x7F)
        yield Emoji(sequence, f"flag of {region}", f"flag of {region}", FLAG), []
    for sequence, name in FLAGS.items():
        yield Emoji(sequence, name, name, FLAG), []


def _keycaps() -> Iterator[tuple[Emoji, list[Emoji]]]:
    for sign in "0123456789#*":
        name = f"keycap {dict(zip('#*', ('hash', 'asterisk'), strict=True)).get(sign, sign)}"
        yield Emoji(f"{sign}{EMOJI}\u20e3", name, name, KEYCAP), []


def _others() -> Iterator[tuple[Emoji, list[Emoji]]]:
    for sequence, name in OTHERS.items():
        yield Emoji(sequence, name, name, FACE if name.startswith("face ") else THING), []


def unicode_version() -> str:
    """Of the names that this Python knows; it decides which code points there are."""
    return f"{unicodedata.unidata_version} (Python {sys.version_info.major}.{sys.version_info.minor})"
