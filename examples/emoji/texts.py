"""What is said of pictures, asked about them and changed in them: true because they are drawn so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from examples.emoji.names import FLAG, KEYCAP, PERSON, THING
from examples.emoji.people import TONES
from examples.emoji.pictures import Picture, chance

QUESTIONS = {
    "name": "what is it?",
    "background": "what colour is the background?",
    "tone": "which skin tone?",
    "colour": "what is the main colour?",
    "hair": "what hair?",
    "profession": "what profession?",
    "gender": "woman, man or person?",
    "person": "is there a person?",
}
"""The words of each type of question."""

YES_NO = "person"


@dataclass(frozen=True)
class Question:
    """About one picture, with its only answer. ``kind``: one of `QUESTIONS`."""

    picture: Picture
    kind: str
    answer: str

    @property
    def text(self) -> str:
        return QUESTIONS[self.kind]


@dataclass(frozen=True)
class Edit:
    """Two pictures, and the words that ask for the second where the first is shown."""

    kind: str
    before: Picture
    text: str
    after: Picture


def questions(pictures: Sequence[Picture], seed: int) -> list[Question]:
    """All that can be asked of each picture, and, of as many pictures with a person as without, whether there is one.

    The main colour is asked for where it is clear and no skin tone decides it; of faces, figures and hands it is not
    asked whether they are a person.
    """
    balanced = _with_and_without(pictures, seed)
    return [question for picture in pictures for question in _of(picture, balanced)]


def _of(picture: Picture, balanced: set[Picture]) -> Iterator[Question]:
    emoji, colour = picture.emoji, picture.drawing.colour
    answers = {
        "name": emoji.name,
        "background": picture.background,
        "tone": emoji.tone,
        "colour": colour.name if colour.clear and not emoji.tone else "",
        "hair": emoji.hair,
        "profession": emoji.profession,
        "gender": emoji.gender,
        "person": ("yes" if emoji.kind == PERSON else "no") if picture in balanced else "",
    }
    for kind, answer in answers.items():
        if answer:
            yield Question(picture, kind, answer)


def _with_and_without(pictures: Sequence[Picture], seed: int) -> set[Picture]:
    order = sorted(pictures, key=lambda picture: chance(seed, "person", picture.file))
    people = [picture for picture in order if picture.emoji.kind == PERSON]
    others = [picture for picture in order if picture.emoji.kind in (THING, FLAG, KEYCAP)]
    count = min(len(people), len(others))
    return {*people[:count], *others[:count]}


EDITS = ("background", "tone", "gender", "hair", "profession", "object")
"""What changes. "object": everything but the background, of what is no person."""


def edits(pictures: Sequence[Picture], seed: int, each: int = 1) -> list[Edit]:
    """Pairs of the pictures that differ in one thing: of each picture at most ``each`` of every kind.

    Which of several partners is taken, a hash of the seed and the files' names decides.
    """
    found = []
    for kind in EDITS:
        rest, text = _RULES[kind]
        groups: dict[tuple[str, ...], list[Picture]] = defaultdict(list)
        keys = {picture: key for picture in pictures if (key := rest(picture)) is not None}
        for picture, key in keys.items():
            groups[key].append(picture)
        for picture, key in keys.items():
            partners = [other for other in groups[key] if _value(kind, other) != _value(kind, picture)]
            partners.sort(key=lambda other: chance(seed, kind, picture.file, other.file))  # noqa: B023
            found += [Edit(kind, picture, text(other), other) for other in partners[:each]]
    return found


def _value(kind: str, picture: Picture) -> str:
    emoji = picture.emoji
    return {
        "background": picture.background,
        "tone": emoji.tone,
        "gender": emoji.gender,
        "hair": emoji.hair,
        "profession": emoji.profession,
        "object": emoji.name,
    }[kind]


Rest = Callable[[Picture], "tuple[str, ...] | None"]


def _rest_of_background(picture: Picture) -> tuple[str, ...] | None:
    return (picture.emoji.full_name,)


def _rest_of_tone(picture: Picture) -> tuple[str, ...] | None:
    emoji = picture.emoji
    return (emoji.name, picture.background) if emoji.tone in TONES else None


def _rest_of_gender(picture: Picture) -> tuple[str, ...] | None:
    emoji = picture.emoji
    return (emoji.base, emoji.tone, picture.background) if emoji.gender else None


def _rest_of_hair(picture: Picture) -> tuple[str, ...] | None:
    emoji = picture.emoji
    return (emoji.gender, emoji.tone, picture.background) if emoji.hair else None


def _rest_of_profession(picture: Picture) -> tuple[str, ...] | None:
    emoji = picture.emoji
    return (emoji.gender, emoji.tone, picture.background) if emoji.profession else None


def _rest_of_object(picture: Picture) -> tuple[str, ...] | None:
    return (picture.background,) if picture.emoji.kind == THING else None


_RULES: dict[str, tuple[Rest, Callable[[Picture], str]]] = {
    "background": (_rest_of_background, lambda after: f"change the background to {after.background}"),
    "tone": (_rest_of_tone, lambda after: f"change the skin tone to {after.emoji.tone}"),
    "gender": (_rest_of_gender, lambda after: f"make it a {after.emoji.gender}"),
    "hair": (_rest_of_hair, lambda after: f"change the hair to {after.emoji.hair}"),
    "profession": (_rest_of_profession, lambda after: f"change the profession to {after.emoji.profession}"),
    "object": (_rest_of_object, lambda after: f"put {after.emoji.name} in its place"),
}
"""Of each kind, what stays (None: nothing to change), and the words."""
