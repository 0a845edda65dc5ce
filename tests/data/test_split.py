"""Which images are held out: by their name alone, the same for every stage and every machine."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from lavit.data.annotations import CaptionItem, EditItem, VQAItem
from lavit.data.captioned_folder import CaptionedFolder
from lavit.data.split import divided, divided_folder, is_held_out, name_of, place_of, sample

NAMES = [f"{number}.png".encode() for number in range(4000)]


def test_places_are_those_that_they_have_always_been():
    """Held-out images of a published run must stay held out in later versions."""
    places = [place_of(b"a.png"), place_of(b"sub/a.png"), place_of(b"a.png", 7), place_of("ä.png".encode())]
    assert [round(place, 6) for place in places] == GOLDEN


GOLDEN = [0.339695, 0.637983, 0.754397, 0.019017]


def test_the_share_is_held_out_and_nothing_else():
    for share in (0.05, 0.3):
        held = sum(is_held_out(name, share) for name in NAMES)
        deviation = (len(NAMES) * share * (1 - share)) ** 0.5
        assert abs(held - len(NAMES) * share) < 4 * deviation
    assert not any(is_held_out(name, 0.0) for name in NAMES)


def test_a_larger_share_holds_out_what_a_smaller_one_does():
    assert {n for n in NAMES if is_held_out(n, 0.1)} < {n for n in NAMES if is_held_out(n, 0.2)}


def test_another_seed_is_another_split():
    first, second = ({n for n in NAMES if is_held_out(n, 0.5, seed)} for seed in (0, 1))
    assert 0.2 * len(NAMES) < len(first & second) < 0.3 * len(NAMES)


def test_a_folder_and_its_images_are_the_same_names():
    root = Path("/somewhere/data")
    assert name_of(root / "images" / "a" / "x.png", root) == b"a/x.png"
    assert name_of(root / "images" / "a" / "x.png", root / "images") == b"a/x.png"
    assert name_of(Path("/else/images/a/x.png"), "/else") == b"a/x.png"
    assert name_of(root / "images", root) == b"images"  # a file of this name
    with pytest.raises(ValueError, match="is not in the subpath of|does not start with"):
        name_of("/elsewhere/x.png", root)


def test_names_count_as_the_bytes_they_are():
    composed, parted = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    assert name_of(f"/d/{composed}", "/d") == composed.encode() != name_of(f"/d/{parted}", "/d")
    odd = os.fsdecode(b"\xff.png")  # no UTF-8
    assert name_of(f"/d/{odd}", "/d") == b"\xff.png"


def test_images_that_are_added_change_nothing_for_the_others():
    few = [Path("/d") / name.decode() for name in NAMES[:50]]
    many = [Path("/d") / name.decode() for name in NAMES]
    train, held = divided(few, "/d", 0.2)
    all_train, all_held = divided(many, "/d", 0.2)
    assert set(train) < set(all_train) and set(held) < set(all_held)
    assert train + held != few and sorted(train + held) == sorted(few) and train == [p for p in few if p in train]
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="share: expected a share of the images in"):
            divided(few, "/d", share)


def test_a_sample_is_the_same_whatever_the_order():
    paths = [Path("/d/images") / name.decode() for name in NAMES[:100]]
    chosen = sample(paths, "/d", 10)
    assert len(chosen) == 10 and set(sample(reversed(paths), "/d", 10)) == set(chosen)
    assert set(sample(paths, "/d/images", 10)) == set(chosen) and sample(paths, "/d", 100) == paths


def test_what_is_said_of_an_image_goes_where_the_image_goes():
    root = Path("/d")
    files = [root / "images" / f"{number}.png" for number in range(40)]
    folder = CaptionedFolder(
        root,
        captions=[CaptionItem(i, path, ("text",)) for i, path in enumerate(files)],
        questions=[VQAItem(i, i, path, "what?", ("this",)) for i, path in enumerate(files)],
        answered=True,
        edits=[EditItem(a, "turn it", b) for a, b in zip(files, files[1:], strict=False)],
        texts=["a text"],
        bad=[("a", "b")],
    )
    train, held, lost = divided_folder(folder, 0.3)
    expected = divided(files, root, 0.3)
    for part, paths in zip((train, held), expected, strict=True):
        assert [item.image for item in part.captions] == paths == [item.image for item in part.questions]
        assert all(item.image in paths and item.result in paths for item in part.edits)
    crossing = sum((a in expected[0]) != (b in expected[0]) for a, b in zip(files, files[1:], strict=False))
    assert lost == crossing > 0 and len(train.edits) + len(held.edits) == 39 - lost
    assert train.texts == ["a text"] and train.bad and not held.texts and held.answered
