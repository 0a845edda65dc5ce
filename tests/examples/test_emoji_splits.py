"""Laws of the splits: no combination leaks, its parts are all seen, what is unseen is unseen, and a seed decides."""

import pytest

from examples.emoji.people import TONES
from examples.emoji.splits import (
    COMBINATIONS,
    PICTURES,
    SPLITS,
    TRAIN,
    choose,
    combination,
    parts_of,
    parts_seen,
    split,
)

WORLDS = [(0, 2, None), (3, 1, None), (0, 2, 300), (1, 3, 60), (2, 2, 12), (5, 1, 9), (0, 1, 20)]
"""(seed, backgrounds of each emoji, limit); in the last two some combinations return to training."""


@pytest.fixture(scope="module", params=WORLDS)
def parts(request, found):
    seed, each, limit = request.param
    return split(choose(found.drawings, limit, seed), each, seed)


def files(parts):
    return {name: [picture.file for picture in parts[name]] for name in SPLITS}


def test_no_picture_is_in_two_splits(parts):
    listed = [file for name in SPLITS for file in files(parts)[name]]
    assert len(set(listed)) == len(listed)


def test_no_held_out_combination_is_trained_on(parts):
    assert not {*map(combination, parts[TRAIN])} & {*map(combination, parts[COMBINATIONS])}


def test_all_parts_of_held_out_combinations_are_trained_on(parts):
    seen = parts_seen(parts[TRAIN])
    for picture in parts[COMBINATIONS]:
        assert parts_of(picture) <= seen, picture.file


def test_no_base_of_held_out_pictures_is_elsewhere(parts):
    elsewhere = {picture.emoji.base for name in (TRAIN, COMBINATIONS) for picture in parts[name]}
    assert not elsewhere & {picture.emoji.base for picture in parts[PICTURES]}


def test_all_that_can_be_held_out_is(found):
    parts = split(found.drawings, 2, 0)
    tones = {picture.emoji.tone for picture in parts[COMBINATIONS]}
    assert tones == {"", *TONES}
    assert {picture.emoji.hair for picture in parts[COMBINATIONS] if picture.emoji.hair} == {
        *("red", "curly", "white", "bald", "blond")
    }
    assert {picture.emoji.kind for picture in parts[PICTURES]} >= {"person", "body", "face", "flag", "thing"}
    assert 0.1 < len(parts[COMBINATIONS]) / sum(map(len, parts.values())) < 0.25
    assert 0.03 < len(parts[PICTURES]) / sum(map(len, parts.values())) < 0.1


def test_the_seed_decides_and_the_order_does_not(found):
    first = files(split(found.drawings, 2, 0))
    again = files(split(found.drawings[::-1], 2, 0))
    assert {name: sorted(first[name]) for name in SPLITS} == {name: sorted(again[name]) for name in SPLITS}
    other = files(split(found.drawings, 2, 1))
    assert all(set(first[name]) != set(other[name]) for name in SPLITS)


def test_every_emoji_is_on_as_many_backgrounds_as_asked_for(found):
    for each in (1, 3):
        parts = split(found.drawings, each, 0)
        counts: dict[str, int] = {}
        for name in (TRAIN, PICTURES):
            for picture in parts[name]:
                counts[picture.emoji.full_name] = counts.get(picture.emoji.full_name, 0) + 1
        assert set(counts.values()) <= {each, each + 1}  # one more where a combination returned


def test_a_limit_takes_whole_bases(found):
    chosen = choose(found.drawings, 100, 0)
    assert 60 < len(chosen) <= 100
    bases = {drawing.emoji.base for drawing in chosen}
    assert [drawing for drawing in found.drawings if drawing.emoji.base in bases] == chosen
