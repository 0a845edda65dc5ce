"""Which pictures are trained on, and which are held out: by combination, and whole.

- held-out-combinations: every part has been seen in training, the combination never. Of every base with skin tones one
  tone (of every third base two), in all its genders: "firefighter" with "medium". Of hair, two tones of each: "red
  hair" with "dark". Of a quarter of the emoji without skin tones, one background more: "cactus" on "blue".
- held-out-pictures: base names of which no variant is trained on.

All by a hash of the seed and the names: nothing depends on the order or on what else there is, but for the few
combinations that return to training because a part of theirs would not be seen there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from examples.emoji.people import HAIR, TONES
from examples.emoji.pictures import Drawing, Picture, backgrounds, chance

TRAIN, COMBINATIONS, PICTURES = "train", "held-out-combinations", "held-out-pictures"
SPLITS = (TRAIN, COMBINATIONS, PICTURES)

_UNSEEN = 0.06  # of the base names of each kind
_TWO_TONES = 1 / 3  # of the bases with skin tones, how many have two held out
_BACKGROUND_MORE = 0.25  # of the emoji without skin tones
_ALWAYS_SEEN = ("adult",)  # what the others are variants of


def choose(drawings: Sequence[Drawing], limit: int | None, seed: int) -> list[Drawing]:
    """At most ``limit`` emoji, whole bases of them, in their order. None: all."""
    if limit is None or limit >= len(drawings):
        return list(drawings)
    sizes: dict[str, int] = defaultdict(int)
    for drawing in drawings:
        sizes[drawing.emoji.base] += 1
    chosen: set[str] = set()
    for base in sorted(sizes, key=lambda base: chance(seed, "limit", base)):
        if sizes[base] <= limit:
            chosen.add(base)
            limit -= sizes[base]
    return [drawing for drawing in drawings if drawing.emoji.base in chosen]


def split(drawings: Sequence[Drawing], each: int, seed: int) -> dict[str, list[Picture]]:
    """The pictures of each of `SPLITS`; ``each``: on how many backgrounds an emoji is shown."""
    unseen = _unseen_bases(drawings, seed)
    tones = _held_out_tones({d.emoji.base: bool(d.emoji.hair) for d in drawings if d.emoji.tone}, seed)
    parts: dict[str, list[Picture]] = {name: [] for name in SPLITS}
    for drawing in drawings:
        emoji = drawing.emoji
        order = backgrounds(drawing, seed)
        shown = [Picture(drawing, background) for background in order[: each + 1]]
        if emoji.base in unseen:
            parts[PICTURES] += shown[:each]
        elif emoji.tone in tones.get(emoji.base, ()):
            parts[COMBINATIONS] += shown[:each]
        else:
            parts[TRAIN] += shown[:each]
            if not emoji.tone and chance(seed, "background more", emoji.name) < _BACKGROUND_MORE:
                parts[COMBINATIONS] += shown[each:]
    _return_unseen_parts(parts)
    return parts


def combination(picture: Picture) -> tuple[str, ...]:
    """What is held out together: (base, tone), or (name, background) of what has no skin tone."""
    emoji = picture.emoji
    return ("tone", emoji.base, emoji.tone) if emoji.tone else ("background", emoji.name, picture.background)


def parts_of(picture: Picture) -> set[tuple[str, str]]:
    """What must have been seen in training, one by one, for a combination of them to be asked for."""
    emoji = picture.emoji
    words = {
        "name": emoji.name,
        "base": emoji.base,
        "tone": emoji.tone,
        "gender": emoji.gender,
        "hair": emoji.hair,
        "profession": emoji.profession,
        "background": picture.background,
    }
    return {(part, word) for part, word in words.items() if word}


def parts_seen(pictures: Iterable[Picture]) -> set[tuple[str, str]]:
    """The parts of all of them."""
    return {part for picture in pictures for part in parts_of(picture)}


def _unseen_bases(drawings: Sequence[Drawing], seed: int) -> set[str]:
    """The share of each kind, people with a profession apart, with the least hashes."""
    groups: dict[tuple[str, bool], set[str]] = defaultdict(set)
    for drawing in drawings:
        emoji = drawing.emoji
        if not emoji.hair and emoji.base not in _ALWAYS_SEEN:
            groups[emoji.kind, bool(emoji.profession)].add(emoji.base)
    unseen: set[str] = set()
    for bases in groups.values():
        order = sorted(bases, key=lambda base: (chance(seed, "unseen", base), base))
        unseen.update(order[: round(_UNSEEN * len(order))])
    return unseen


def _held_out_tones(bases: dict[str, bool], seed: int) -> dict[str, set[str]]:
    """bases: with skin tones, and whether they are about hair -> the tones held out of each."""
    ordered = {base: sorted(TONES, key=lambda tone: chance(seed, "tone", base, tone)) for base in bases}
    held = {
        base: set(order[: 2 if chance(seed, "two tones", base) < _TWO_TONES else 1]) for base, order in ordered.items()
    }
    # Two kinds of hair share the tones that they are held out with, so that one can be changed into the other there.
    order = sorted(TONES, key=lambda tone: chance(seed, "tone of hair", tone))
    hairs = sorted((base for base, hair in bases.items() if hair), key=lambda base: chance(seed, "hair", base))
    for number, base in enumerate(hairs):
        pair = number // 2 % 2
        held[base] = {order[pair], order[2 + pair]}
    assert len(hairs) <= len(HAIR) + 1
    return held


def _return_unseen_parts(parts: dict[str, list[Picture]]) -> None:
    """Whole combinations with a part that training has not go there, until there is none."""
    while True:
        seen = parts_seen(parts[TRAIN])
        back = {combination(picture) for picture in parts[COMBINATIONS] if not parts_of(picture) <= seen}
        if not back:
            return
        parts[TRAIN] += [picture for picture in parts[COMBINATIONS] if combination(picture) in back]
        parts[COMBINATIONS] = [picture for picture in parts[COMBINATIONS] if combination(picture) not in back]
