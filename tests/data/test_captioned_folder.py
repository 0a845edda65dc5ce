"""A folder of captioned images as training samples: what is in its files is what is learned, and what cannot be used is
named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lavit.data import AnnotationError, ImageError
from lavit.data.annotations import read_edits, read_texts
from lavit.data.captioned_folder import ImageFiles, captioned_sources, read_folder, usual_answer
from lavit.data.sequences import MOST_ASKED, PROMPT, AskedSource, Sequencing
from lavit.kernels import Loss, Segment

TEXT, CODES, FEATURES = Segment
EOS = 999


def encode(text: str) -> list[int]:
    return list(text.encode())


def said(ids) -> str:
    return bytes(i for i in ids if i != EOS).decode()


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(path)


def question(number: int, image: int, answers: list[str]):
    asked = {"question_id": number, "image_id": image, "question": f"what is {number}?"}
    answered = {"question_id": number, "image_id": image, "question_type": "what is", "answer_type": "other"}
    return asked, answered | {"answers": [{"answer": text} for text in answers]}


@pytest.fixture
def folder(tmp_path):
    """Images 1 and 2 with three captions; a third that only a question shows, under VQAv2's name; and texts."""
    root = tmp_path / "data"
    for seed, name in enumerate(("a.png", "below/b.png", "000000000007.png")):
        picture(root / "images" / name, seed)
    (root / "images" / "000000000007.png").rename(root / "images" / "000000000007.jpg")
    captions = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "below/b.png"}],
        "annotations": [
            {"id": 1, "image_id": 2, "caption": "two"},
            {"id": 2, "image_id": 1, "caption": "one"},
            {"id": 3, "image_id": 2, "caption": "zwei"},
        ],
    }
    pairs = [question(1, 2, ["red"] * 4 + ["blue"] * 6), question(2, 7, [""] * 10), question(3, 7, ["no"] * 10)]
    (root / "captions.json").write_text(json.dumps(captions))
    (root / "questions.json").write_text(json.dumps({"questions": [asked for asked, _ in pairs]}))
    (root / "answers.json").write_text(json.dumps({"annotations": [answered for _, answered in pairs]}))
    (root / "text.jsonl").write_text('{"text": "first"}\n\n"second"\n')
    return root


def sources(read, images=None):
    numbers = {path: number for number, path in enumerate(read.paths)} if images is None else images
    return captioned_sources(read, numbers, Sequencing(encode, EOS))


def test_edits_are_an_image_words_and_the_image_that_they_ask_for(folder):
    good = [{"image": "a.png", "text": "turn it", "result": "below/b.png"}]
    wrong = [{"image": "a.png", "text": " ", "result": "a.png"}, {"image": "a.png", "text": "x"}, "no object"]
    wrong += [{"image": "../a.png", "text": "x", "result": "a.png"}, {"image": "a.png", "text": "x", "result": "c.png"}]
    lines = [json.dumps(one) for one in (*wrong, *good)] + ["", "{"]
    (folder / "edits.jsonl").write_text("\n".join(lines))
    read = read_folder(folder)
    names = [path.relative_to(folder / "images").as_posix() for path in read.paths]
    assert names == ["a.png", "below/b.png", "000000000007.jpg"] and "turn it" in list(read.sentences())
    (sample,) = (sources(read)["edit"][i] for i in range(len(sources(read)["edit"])))
    assert sample.segments == (FEATURES, TEXT, CODES) and sample.images == (0, 1) and said(sample.texts[0]) == "turn it"
    assert sample.loss == (Loss.NONE, Loss.CONTENT, Loss.ALL)
    assert [name for name, _ in read.bad] == [f"edits.jsonl: line {number}" for number in (1, 2, 3, 4, 5, 8)]
    named = ("empty", "result", "image", "leads out", "no image file", "JSON")
    assert all(words in reason for (_, reason), words in zip(read.bad, named, strict=True))
    assert sources(read, {read.paths[0]: 0})["edit"].entries == []  # the other image cannot be read
    (folder / "edits.jsonl").unlink()
    (folder / "edits.jsonl").mkdir()
    with pytest.raises(AnnotationError, match="cannot read .*edits.jsonl: Is a directory"):
        read_folder(folder)
    without = read_folder(folder, edits=False)
    assert without.edits == [] and without.bad == []


def test_edits_between_images_of_other_splits_are_left_out(folder):
    images = [
        {"cocoid": i, "filename": name, "split": split, "sentences": [{"raw": "x"}]}
        for i, (name, split) in enumerate((("a.png", "train"), ("000000000007.jpg", "train"), ("below/b.png", "test")))
    ]
    (folder / "captions.json").write_text(json.dumps({"images": images}))
    pairs = [("a.png", "below/b.png"), ("below/b.png", "below/b.png"), ("a.png", "000000000007.jpg")]
    lines = [json.dumps({"image": image, "text": "x", "result": result}) for image, result in pairs]
    (folder / "edits.jsonl").write_text("\n".join(lines))
    assert len(read_folder(folder).edits) == 3
    (edit,) = read_folder(folder, split="train").edits
    assert edit.result.name == "000000000007.jpg"


def test_everything_of_the_files_becomes_a_sample(folder):
    read = read_folder(folder)
    names = [path.relative_to(folder / "images").as_posix() for path in read.paths]
    assert read.bad == [] and names == ["a.png", "below/b.png", "000000000007.jpg"]
    found = sources(read)
    captions = [(sample.images[0], said(sample.texts[0])) for sample in map(found["caption"].__getitem__, range(3))]
    assert captions == [(0, "one"), (1, "two"), (1, "zwei")] and len(found["caption"]) == 3
    for sample in map(found["caption"].__getitem__, range(3)):
        assert sample.segments == (FEATURES, TEXT) and sample.loss == (Loss.NONE, Loss.CONTENT)
        assert sample.texts[0][-1] == EOS
    wanted = [found["image"][i] for i in range(len(found["image"]))]
    assert [(said(sample.texts[0]), *sample.images) for sample in wanted] == [("one", 0), ("two", 1), ("zwei", 1)]
    assert all(sample.segments == (TEXT, CODES) and sample.loss == (Loss.CONTENT, Loss.ALL) for sample in wanted)
    assert [said(found["text"][i].texts[0]) for i in range(len(found["text"]))] == ["first", "second"]


def test_the_answer_to_learn_is_what_most_people_said(folder):
    found = sources(read_folder(folder))["question"]
    assert len(found) == 2  # nobody answered the second
    for sample, number, image, answer in ((found[0], 1, 1, "blue"), (found[1], 3, 2, "no")):
        assert sample.segments == (FEATURES, TEXT, TEXT) and sample.images == (image,)
        assert said(sample.texts[0]) == PROMPT.format(f"what is {number}?") and said(sample.texts[1]) == f" {answer}"
        assert sample.loss == (Loss.NONE, Loss.NONE, Loss.CONTENT)
    assert usual_answer(["b", "a", " a", "b", ""]) == "b" and usual_answer([]) == ""


def test_questions_about_an_image_are_asked_together_each_once_the_first():
    asked = [(5, f"q{k}", f"a{k}") for k in range(3)] + [(8, "only", "one")]
    source = AskedSource([asked[0], asked[3], *asked[1:3]], Sequencing(encode, EOS))
    orders = [[said(text) for text in sample.texts] for sample in map(source.__getitem__, range(len(source)))]
    turn = [(PROMPT.format(f"q{k}"), f" a{k}") for k in range(3)]
    flat = [[word for pair in (*turn[k:], *turn[:k]) for word in pair] for k in range(3)]
    assert orders == [flat[0], [PROMPT.format("only"), " one"], *flat[1:]]
    assert [source[k].images for k in range(4)] == [(5,), (8,), (5,), (5,)]
    assert source[2].loss == (Loss.NONE, *(Loss.NONE, Loss.CONTENT) * 3)

    many = AskedSource([(0, f"q{k}", "a") for k in range(MOST_ASKED + 2)], Sequencing(encode, EOS))
    firsts = [said(many[k].texts[0]) for k in range(len(many))]
    assert firsts == [PROMPT.format(f"q{k}") for k in range(MOST_ASKED + 2)]
    assert all(len(many[k].texts) == 2 * MOST_ASKED for k in range(len(many)))
    assert many[3].texts != many[4].texts and many.fingerprint != source.fingerprint
    assert source.repeats == pytest.approx((3 * 3 + 1) / 4) and many.repeats == MOST_ASKED


def test_as_many_questions_are_asked_as_there_is_room_for():
    asked = [(0, f"q{k}", "a" * k) for k in range(6)]
    of_one = [len(AskedSource([entry], Sequencing(encode, EOS))[0].texts[0]) + k + 2 for k, entry in enumerate(asked)]
    for room in (1, of_one[0], sum(of_one[:3]), sum(of_one[:3]) + 1, sum(of_one)):
        source = AskedSource(asked, Sequencing(encode, EOS), room)
        taken = [sum(map(len, source[k].texts)) for k in range(6)]
        assert all(each <= room or len(source[k].texts) == 2 for k, each in enumerate(taken))
        assert len(source[0].texts) == 2 * max(1, sum(sum(of_one[: k + 1]) <= room for k in range(6)))
        assert [said(source[k].texts[0]) for k in range(6)] == [PROMPT.format(f"q{k}") for k in range(6)]


def test_only_images_and_captions_are_needed(folder):
    for name in ("questions.json", "answers.json", "text.jsonl"):
        (folder / name).unlink()
    read = read_folder(folder)
    assert not read.questions and not read.texts and not read.answered
    assert {name: len(source) for name, source in sources(read).items()} == {
        "caption": 3,
        "question": 0,
        "image": 3,
        "unprompted": 2,
        "text": 0,
        "edit": 0,
    }
    assert sorted(read.sentences()) == ["one", "two", "zwei"]


def test_samples_of_images_that_cannot_be_read_are_left_out(folder):
    read = read_folder(folder)
    found = sources(read, {read.paths[1]: 0})
    assert [found["caption"][i].images for i in range(len(found["caption"]))] == [(0,), (0,)]
    assert len(found["question"]) == 1 and len(found["text"]) == 2
    assert found["caption"].fingerprint != sources(read)["caption"].fingerprint


def test_fingerprints_follow_what_is_learned_and_not_where_it_lies(folder, tmp_path):
    before = {name: source.fingerprint for name, source in sources(read_folder(folder)).items()}
    assert len(set(before.values())) == 6
    files = ImageFiles(folder, read_folder(folder).paths).fingerprint
    moved = folder.rename(tmp_path / "moved")
    assert {name: source.fingerprint for name, source in sources(read_folder(moved)).items()} == before
    assert ImageFiles(moved, read_folder(moved).paths).fingerprint == files
    (moved / "text.jsonl").write_text('{"text": "first"}\n"other"\n')
    after = {name: source.fingerprint for name, source in sources(read_folder(moved)).items()}
    assert {name for name in after if after[name] != before[name]} == {"text"}


def test_the_files_are_a_data_set_that_names_what_it_cannot_read(folder):
    (folder / "images" / "a.png").write_bytes(b"no image")
    files = ImageFiles(folder, read_folder(folder).paths)
    with pytest.raises(ImageError, match=r"a\.png: not an image"):
        files[0]
    assert len(files) == 3 and files[1].size == (7, 9) and files.name(1).endswith("b.png")


def test_texts_that_cannot_be_used_are_named_and_the_rest_goes_on(tmp_path):
    lines = [b'{"text": "a"}', b'{"words": "b"}', b"{", b'"\xff"', b'{"text": " "}', b'"\\ud800"', b'"c"']
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    read = read_texts(tmp_path / "t.jsonl")
    assert read.items == ["a", "c"]
    assert [name for name, _ in read.bad] == [f"t.jsonl: line {number}" for number in (2, 3, 4, 5, 6)]
    reasons = "an object with a text, is not JSON, is not UTF-8, is empty, that UTF-8 can hold".split(", ")
    assert all(part in reason for (_, reason), part in zip(read.bad, reasons, strict=True))
    (tmp_path / "t.txt").write_text("one\n\n  two \n")
    assert read_texts(tmp_path / "t.txt").items == ["one", "two"]


def test_broken_lines_of_edits_and_texts_are_told_in_the_same_words(tmp_path):
    lines = [
        b"\xef\xbb\xbf",
        b'{"text": "\xff"}',
        b'{"text": ',
        b"[" * 100_000,
        b"9" * 5000,
        b'{"image": "a", "result": "a", "text": "\\ud800"}',
    ]
    paths = tmp_path / "edits.jsonl", tmp_path / "text.jsonl"
    for path in paths:
        path.write_bytes(b"\r\n".join([*lines, b'{"image": "a", "result": "a", "text": "good"}']))
    (tmp_path / "a").touch()
    edits, texts = read_edits(paths[0], tmp_path), read_texts(paths[1])
    assert [item.text for item in edits.items] == texts.items == ["good"]
    assert [name for name, _ in edits.bad] == [f"edits.jsonl: line {number}" for number in (2, 3, 4, 5, 6)]
    assert [name for name, _ in texts.bad] == [f"text.jsonl: line {number}" for number in (2, 3, 4, 5, 6)]
    reasons = [reason for _, reason in texts.bad]
    assert reasons[0] == "is not UTF-8 text (byte 10)" and reasons[1] == "is not JSON (Expecting value, column 9)"
    assert "nested too deeply" in reasons[2] and "digits" in reasons[3]
    assert reasons[4] == '"text" is not text that UTF-8 can hold'
    assert [reason for _, reason in edits.bad] == reasons


def test_a_given_text_file_stands_for_the_folders(folder, tmp_path):
    (tmp_path / "more.txt").write_text("mine\n")
    assert read_folder(folder, text=tmp_path / "more.txt").texts == ["mine"]


def test_what_cannot_be_used_at_all_is_an_error_that_names_it(folder, tmp_path):
    (tmp_path / "hollow.txt").write_text("\n")
    cases = [
        (lambda: read_folder(tmp_path / "nowhere"), FileNotFoundError, "data: there is no folder"),
        (lambda: read_folder(folder / "captions.json"), NotADirectoryError, "data: expected a folder"),
        (lambda: read_folder(folder, text=tmp_path / "no.txt"), AnnotationError, "text: cannot read"),
        (lambda: read_folder(folder, text=tmp_path / "t.csv"), AnnotationError, "ends in .txt or .jsonl"),
        (lambda: read_folder(folder, text=tmp_path / "hollow.txt"), AnnotationError, "there is no text in"),
        (lambda: read_folder(folder, split="train"), AnnotationError, "which has no splits"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
    (folder / "questions.json").unlink()
    with pytest.raises(AnnotationError, match=r"answers\.json: expected questions\.json beside it"):
        read_folder(folder)
    (folder / "captions.json").unlink()
    with pytest.raises(AnnotationError, match=r"captions\.json: no such file"):
        read_folder(folder)
