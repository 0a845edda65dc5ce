"""Laws of the emoji's names: true of their parts, and no two alike."""

import re
import unicodedata
from collections import Counter

import pytest
from plain_glyphs import PlainGlyphs

from examples.emoji.names import BODY, FACE, KINDS, PERSON, candidates, slug
from examples.emoji.people import NO_TONE, TONES
from examples.emoji.pictures import find_emoji
from examples.emoji.regions import REGIONS


def by_sequence(found):
    return {drawing.emoji.sequence: drawing.emoji for drawing in found.drawings}


def test_no_two_candidates_share_a_sequence_or_a_name():
    listed = [emoji for untoned, tones in candidates() for emoji in (untoned, *tones)]
    for key in ("sequence", "full_name"):
        counts = Counter(getattr(emoji, key) for emoji in listed)
        assert [value for value, count in counts.items() if count > 1] == []


def test_names_have_nothing_that_ends_a_caption_or_an_answer():
    for untoned, _ in candidates():
        assert re.fullmatch("[a-z0-9'-]+( [a-z0-9'-]+)*", untoned.name), untoned.name


def test_no_two_emoji_share_a_file_name_or_a_picture(found):
    slugs = [drawing.emoji.slug for drawing in found.drawings]
    assert len(set(slugs)) == len(slugs)
    assert ("flag of saint martin", "flag of france") in found.same
    assert "flag of saint martin" not in {drawing.emoji.name for drawing in found.drawings}


@pytest.mark.parametrize(
    "sequence, name, facts",
    [
        ("👩🏽‍🚒", "woman firefighter with medium skin tone", dict(base="firefighter", gender="woman")),
        ("🧑‍🚒", "firefighter", dict(tone=NO_TONE, gender="person", profession="firefighter")),
        ("👨🏿‍⚕️", "man health worker with dark skin tone", dict(profession="health worker", tone="dark")),
        ("👮🏻‍♀️", "woman police officer with light skin tone", dict(profession="police officer")),
        ("🧙‍♂️", "man mage", dict(profession="", gender="man")),
        ("🏃🏾‍♀️", "woman running with medium-dark skin tone", dict(base="running")),
        ("👩🏼‍🦰", "woman with red hair with medium-light skin tone", dict(hair="red")),
        ("👨🏿‍🦲", "man without hair with dark skin tone", dict(hair="bald")),
        ("👩🏽‍🦳", "woman with white hair with medium skin tone", dict(hair="white")),
        ("👨🏽‍🦯", "man with white cane with medium skin tone", dict(base="with white cane")),
        ("👱🏽‍♀️", "woman with blond hair with medium skin tone", dict(hair="blond")),
        ("👍🏽", "thumbs up sign with medium skin tone", dict(kind=BODY)),
        ("👍", "thumbs up sign", dict(kind=BODY, tone=NO_TONE)),
        ("😀", "grinning face", dict(kind=FACE, tone="")),
        ("🌵", "cactus", dict(kind="thing", tone="", base="cactus")),
        ("🇨🇦", "flag of canada", dict(kind="flag")),
        ("7️⃣", "keycap 7", dict(kind="keycap")),
        ("🏴󠁧󠁢󠁳󠁣󠁴󠁿", "flag of scotland", dict(kind="flag")),
        ("👴🏽", "older man with medium skin tone", dict(base="older adult", gender="man", kind=PERSON)),
    ],
)
def test_a_sequence_is_named_by_its_parts(found, sequence, name, facts):
    emoji = by_sequence(found)[sequence]
    assert emoji.full_name == name
    assert {key: getattr(emoji, key) for key in facts} == facts


def test_a_single_code_point_has_its_unicode_name(found):
    emoji = by_sequence(found)
    for sign in "🌽🍀🍄🍒":
        assert emoji[sign].name == unicodedata.name(sign).lower()


def test_black_and_white_in_a_name_are_colours_of_the_picture(found):
    emoji = by_sequence(found)
    assert emoji["❤"].name == emoji["❤"].base == "heavy heart"  # HEAVY BLACK HEART, drawn red
    assert emoji["⬛"].name == "black large square"
    assert emoji["⬜"].name == "white large square"
    assert {emoji["👆" + tone].name for tone in ["", *TONES.values()]} == {"up pointing backhand index"}


def test_what_looks_alike_in_all_tones_has_none(found):
    assert by_sequence(found)["🏂"].tone == ""
    assert not any("🏂" + tone in by_sequence(found) for tone in TONES.values())


def test_only_what_has_tones_is_said_to_be_without(found):
    toned = {drawing.emoji.name for drawing in found.drawings if drawing.emoji.tone in TONES}
    for drawing in found.drawings:
        assert (drawing.emoji.tone != "") == (drawing.emoji.name in toned)
        assert drawing.emoji.kind in KINDS


def test_what_the_font_has_not_is_left_out():
    there = by_sequence(find_emoji(PlainGlyphs(frozenset(["🌵", "👩‍🚒", "👍🏻"]))))
    assert not {"🌵", "👩‍🚒", "👩🏽‍🚒", "👍🏻", "👍🏽"} & set(there)
    assert there["👍"].tone == ""
    assert "👨🏽‍🚒" in there


def test_names_are_plain_ascii(found):
    for drawing in found.drawings:
        assert drawing.emoji.name.isascii() and drawing.emoji.name == drawing.emoji.name.lower()
        assert slug(drawing.emoji.slug) == drawing.emoji.slug != ""
    assert all(len(code) == 2 and code.isupper() and name for code, name in REGIONS.items())
    assert len(set(REGIONS.values())) == len(REGIONS)
