"""Laws of the folder: lavit reads all of it, and the same settings write the same bytes."""

import json
from dataclasses import asdict

import pytest
from PIL import Image
from plain_glyphs import PlainGlyphs

from examples.emoji import glyphs
from examples.emoji.__main__ import main
from examples.emoji.draw import Settings, draw
from examples.emoji.judge import parse
from examples.emoji.splits import SPLITS
from lavit.data.captioned_folder import read_folder

SMALL = Settings(size=32, limit=150)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("emoji") / "world"
    return root, draw(root, PlainGlyphs(), SMALL)


def test_lavit_reads_every_entry_of_every_split(world):
    root, counts = world
    for name in SPLITS:
        folder = read_folder(root / name)
        assert folder.bad == [] and folder.answered
        assert len(folder.captions) == counts[name]["pictures"] == len(list((root / name / "images").iterdir()))
        assert len(folder.questions) == sum(counts[name]["questions"].values())
        assert len(folder.edits) == sum(counts[name]["edits"].values())
        for question in folder.questions:
            assert len(set(question.answers)) == 1 and question.question_type


def test_world_json_says_what_captions_and_pictures_say(world):
    root, counts = world
    told = json.loads((root / "world.json").read_text())
    assert told["counts"] == counts and told["size"] == 32 and told["glyphs"] == PlainGlyphs.about
    captions = {
        (name, item.image.name): item.captions for name in SPLITS for item in read_folder(root / name).captions
    }
    assert len(captions) == len(told["pictures"])
    for entry in told["pictures"]:
        assert captions[entry["split"], entry["file"]] == (entry["caption"],)
        assert parse(entry["caption"]).background == entry["background"]
        image = Image.open(root / entry["split"] / "images" / entry["file"])
        assert image.size == (32, 32) and list(image.getpixel((0, 0))) == told["backgrounds"][entry["background"]]


def test_the_same_settings_write_the_same_files(world, tmp_path):
    root, _ = world
    draw(tmp_path / "again", PlainGlyphs(), SMALL)
    listed = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    again = sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file())
    assert listed == again
    for path in listed:
        if path.name != "world.json":  # which says how long it took
            assert (root / path).read_bytes() == (tmp_path / "again" / path).read_bytes()


def test_the_fonts_licence_is_beside_the_pictures(world):
    assert "SIL Open Font License" in (world[0] / "LICENCE.txt").read_text()


def test_nothing_is_drawn_into_a_folder_with_something_in_it(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="OUT: expected a new or empty folder"):
        draw(tmp_path, PlainGlyphs(), SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_world_that_was_cut_off_is_drawn_anew(world, tmp_path):
    root, counts = world
    out = tmp_path / "out"

    class Killed(PlainGlyphs):
        def draw(self, sequence, size):
            if size != 32 and list(out.glob("held-out-combinations/images/*.png")):  # not while emoji are looked for
                raise KeyboardInterrupt
            return super().draw(sequence, size)

    with pytest.raises(KeyboardInterrupt):
        draw(out, Killed(), SMALL)
    assert (out / "train" / "captions.json").is_file() and not (out / "world.json").exists()
    (out / "held-out-combinations" / "images" / "half.png").touch()
    again = draw(out, PlainGlyphs(), SMALL)
    assert again["train"] == counts["train"]
    listed = sorted(path.relative_to(root) for path in root.rglob("*"))
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == listed


def test_a_world_that_is_there_stays_and_another_is_not_drawn_over_it(world):
    root, counts = world
    told = (root / "world.json").stat().st_mtime_ns
    assert draw(root, PlainGlyphs(), SMALL) == counts
    for other in (dict(seed=1), dict(size=64), dict(backgrounds=1), dict(limit=149)):
        with pytest.raises(FileExistsError, match="OUT: expected a new or empty folder"):
            draw(root, PlainGlyphs(), Settings(**{**asdict(SMALL), **other}))
    assert (root / "world.json").stat().st_mtime_ns == told


@pytest.mark.parametrize("wrong", [dict(size=48), dict(backgrounds=0), dict(backgrounds=8), dict(limit=0)])
def test_a_setting_out_of_range_is_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
        Settings(**{**asdict(SMALL), **wrong})


def test_the_command_names_the_package_where_there_is_no_font(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(glyphs, "PLACES", (str(tmp_path / "none.ttf"),))
    assert main(["draw", str(tmp_path / "out")]) == 2
    assert "fonts-noto-color-emoji" in capsys.readouterr().err
    assert main(["draw", str(tmp_path / "out"), "--font", str(tmp_path / "mine.ttf")]) == 2
    assert "there is no file" in capsys.readouterr().err
    (tmp_path / "text.ttf").write_text("no font")
    assert main(["draw", str(tmp_path / "out"), "--font", str(tmp_path / "text.ttf")]) == 2
    assert "expected bitmaps of size 109" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
