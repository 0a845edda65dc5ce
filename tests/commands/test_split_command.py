"""`lavit split`: two folders that hold what the one held, each image with what is said of it on one side."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from lavit.cli import main
from lavit.data.captioned_folder import read_folder
from lavit.data.split import divided

COUNT = 30


def captioned(root: Path) -> Path:
    (root / "images" / "more").mkdir(parents=True)
    names = [f"{'more/' if i % 3 == 0 else ''}{i}.png" for i in range(COUNT)]
    for number, name in enumerate(names):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / "images" / name)
    files = [{"id": i, "file_name": name, "kept": "as it is"} for i, name in enumerate(names)]
    texts = [{"id": i, "image_id": i % COUNT, "caption": f"image {i % COUNT}, é"} for i in range(2 * COUNT)]
    captions = {"info": {"year": 2}, "images": files, "annotations": texts}
    (root / "captions.json").write_text(json.dumps(captions))
    asked = [{"question_id": i, "image_id": i, "question": f"which is {i}?"} for i in range(COUNT)]
    people = [{"answer": "it"}] * 10
    told = [
        {"question_id": i, "image_id": i, "question_type": "which", "answer_type": "other", "answers": people}
        for i in range(COUNT)
    ]
    (root / "questions.json").write_text(json.dumps({"questions": asked}))
    (root / "answers.json").write_text(json.dumps({"annotations": told}))
    edits = [{"image": names[i], "text": "next", "result": names[(i + 1) % COUNT]} for i in range(COUNT)]
    (root / "edits.jsonl").write_text("\n".join(map(json.dumps, edits)) + "\n\n")
    (root / "text.jsonl").write_text('"one"\n"two"\n')
    return root


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def test_every_item_is_on_the_side_of_its_image(tmp_path, capsys):
    root, out = captioned(tmp_path / "data"), tmp_path / "out"
    assert main(["split", str(root), "--share", "0.3", "--output", str(out)]) == 0
    said = capsys.readouterr().out
    whole = read_folder(root)
    train, held = read_folder(out / "train"), read_folder(out / "held-out")
    expected = divided(whole.paths, root, 0.3)
    for part, paths in zip((train, held), expected, strict=True):
        assert not part.bad and part.answered
        assert [p.relative_to(part.root) for p in part.paths] == [p.relative_to(root) for p in paths]
        assert files(part.root) == {path.relative_to(root).as_posix() for path in paths}
        assert all(len(item.captions) == 2 for item in part.captions)
        assert [item.image_id for item in part.questions] == [item.image_id for item in part.captions]
    own = {tuple(sorted((e.image.name, e.result.name))) for part in (train, held) for e in part.edits}
    lost = [e for e in whole.edits if (e.image in expected[0]) != (e.result in expected[0])]
    assert len(own) == COUNT - len(lost) and f"{len(lost)} edits are lost" in said and lost
    assert train.texts == ["one", "two"] and not held.texts
    content = json.loads((out / "held-out" / "captions.json").read_text())
    assert content["info"] == {"year": 2} and content["images"][0]["kept"] == "as it is"
    assert "é" in (out / "train" / "captions.json").read_text()
    assert f"{len(expected[1])} images  {2 * len(expected[1])} captions" in said
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_folder_of_images_alone_and_its_images_are_divided_alike(tmp_path):
    root = captioned(tmp_path / "data")
    alone = root / "images"
    for folder, name in ((root, "a"), (alone, "b")):
        assert main(["split", str(folder), "--share", "0.3", "--output", str(tmp_path / name)]) == 0
    for side in ("train", "held-out"):
        assert files(tmp_path / "a" / side / "images") == files(tmp_path / "b" / side)


@pytest.mark.parametrize("link", ["hard", "symbolic", "copy"])
def test_images_are_linked_or_copied(tmp_path, link):
    root = captioned(tmp_path / "data")
    assert main(["split", str(root), "--share", "0.3", "--output", str(tmp_path / "out"), "--link", link]) == 0
    for path in (tmp_path / "out").rglob("*.png"):
        source = root / path.relative_to(tmp_path / "out").relative_to(path.relative_to(tmp_path / "out").parts[0])
        assert path.read_bytes() == source.read_bytes() and path.is_symlink() == (link == "symbolic")
        assert os.path.samefile(path, source) == (link != "copy")


def test_entries_that_cannot_be_used_are_named_and_on_neither_side(tmp_path, capsys):
    root = captioned(tmp_path / "data")
    (root / "images" / "1.png").unlink()
    with open(root / "edits.jsonl", "a") as file:
        file.write("no json\n")
    assert main(["split", str(root), "--share", "0.3", "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "captions.json: images[1]: there is no image file" in said and "edits.jsonl: line 32: is not JSON" in said
    assert "question 1: " in said
    for side in ("train", "held-out"):
        assert not read_folder(tmp_path / "out" / side).bad


def test_questions_go_by_their_place_only_where_no_answers_name_them(tmp_path, capsys):
    root = captioned(tmp_path / "data")
    asked = [{"image_id": i, "question": f"which is {i}?"} for i in range(COUNT)]
    (root / "questions.json").write_text(json.dumps({"questions": asked}))
    words = ["split", str(root), "--share", "0.3", "--output"]
    assert main([*words, str(tmp_path / "answered")]) == 1
    assert 'questions.json: questions[0]: expected a whole number or a text "question_id"' in capsys.readouterr().out
    (root / "answers.json").unlink()
    assert main([*words, str(tmp_path / "bare")]) == 0
    found = {}
    for side in ("train", "held-out"):
        content = json.loads((tmp_path / "bare" / side / "questions.json").read_text())["questions"]
        found |= {entry["image_id"]: side for entry in content}
        assert {item.image_id for item in read_folder(tmp_path / "bare" / side).captions} == {
            image for image, own in found.items() if own == side
        }
    assert len(found) == COUNT


def test_an_image_without_one_of_karpathys_splits_is_on_neither_side(tmp_path, capsys):
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    entries = []
    for number, split in enumerate(["train", "val", None]):
        Image.new("RGB", (4, 4)).save(root / "images" / f"{number}.png")
        entry = {"cocoid": number, "filename": f"{number}.png", "sentences": [{"raw": "text"}]}
        entries.append(entry if split is None else {**entry, "split": split})
    (root / "captions.json").write_text(json.dumps({"images": entries}))
    (root / "questions.json").write_text(json.dumps([{"image": f"{n}.png", "question": "what?"} for n in range(3)]))
    assert main(["split", str(root), "--held-out", "val", "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert 'captions.json: images[2]: expected a text "split", got none' in said
    assert 'questions.json: entries[2]: is about images/2.png, which has no "split"' in said
    assert files(tmp_path / "out") == {"train/images/0.png", "held-out/images/1.png"}


def test_the_folder_that_one_is_in_can_be_the_output(tmp_path, monkeypatch):
    root, here = captioned(tmp_path / "data"), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert main(["split", str(root), "--share", "0.3", "--output", "."]) == 0
    assert len(files(here)) == COUNT and sorted(os.listdir()) == ["held-out", "train"]  # it is still the same folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "here"]


def test_karpathys_splits_are_asked_for_and_kept(tmp_path, capsys):
    root = tmp_path / "data"
    (root / "images" / "val2014").mkdir(parents=True)
    entries = []
    for number, split in enumerate(["train", "restval", "val", "test", "train"]):
        Image.new("RGB", (4, 4)).save(root / "images" / "val2014" / f"{number}.png")
        entry = {"cocoid": number, "filename": f"{number}.png", "filepath": "val2014", "split": split}
        entries.append({**entry, "sentences": [{"raw": f"text {number}"}]})
    (root / "captions.json").write_text(json.dumps({"images": entries}))
    words = ["split", str(root), "--output", str(tmp_path / "out")]
    assert main([*words, "--share", "0.5"]) == 2
    assert "is Karpathy's and has splits of its own: expected --held-out val,test" in capsys.readouterr().err
    assert main([*words, "--held-out", "val,tset"]) == 2
    assert "there is no split tset" in capsys.readouterr().err
    assert main([*words, "--held-out", "val,test"]) == 0
    assert files(tmp_path / "out" / "held-out") == {"images/val2014/2.png", "images/val2014/3.png"}
    read = read_folder(tmp_path / "out" / "train")
    assert [item.captions for item in read.captions] == [("text 0",), ("text 1",), ("text 4",)]


def test_wrong_use_is_one_clear_line_and_leaves_nothing(tmp_path, capsys):
    root = captioned(tmp_path / "data")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    out = str(tmp_path / "out")
    for words, message in (
        (["--output", out], "--share S is needed"),
        (["--share", "1", "--output", out], "--share: expected a share of the images in [0, 1), got 1.0"),
        (["--share", "0", "--output", out], "share: of 30 images none would be in held-out"),
        (["--share", "0.3", "--output", str(tmp_path / "full")], "is there already"),
        (["--share", "0.3", "--output", str(root / "out")], "output: expected a folder outside"),
        (["--held-out", "val", "--output", out], "expected captions.json to be Karpathy's"),
    ):
        assert main(["split", str(root), *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["split", str(tmp_path / "nowhere"), "--share", "0.3", "--output", out]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "full"]
