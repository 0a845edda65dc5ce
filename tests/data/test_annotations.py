"""Laws of the annotation readers: what is in the files comes back in their order; what is broken is named, and the rest
goes on."""

import json
import re

import pytest

from lavit.data.annotations import AnnotationError, CaptionItem, VQAItem, read_captions, read_vqa


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "val2014").mkdir(parents=True)
    for number in (7, 42):
        (folder / f"COCO_val2014_{number:012d}.jpg").write_bytes(b"x")
        (folder / "val2014" / f"{number}.jpg").write_bytes(b"x")
    (folder / f"{9:012d}.jpg").write_bytes(b"x")
    return folder


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def coco(images, annotations):
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations}


def image(number, **more):
    return {"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg", "height": 3, "width": 4} | more


def said(number, image_id, caption):
    return {"id": number, "image_id": image_id, "caption": caption}


def asked(number, image_id=42, question="What is it?"):
    return {"question_id": number, "image_id": image_id, "question": question}


def answered(number, image_id=42, answers=("red",) * 10, **more):
    rows = [{"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(answers)]
    entry = {"question_id": number, "image_id": image_id, "question_type": "what is", "answer_type": "other"}
    return entry | {"answers": rows, "multiple_choice_answer": "red"} | more


def vqa(entries, **more):
    return {"questions": entries, "data_type": "mscoco", "data_subtype": "val2014", "task_type": "Open-Ended"} | more


# ------------------------------------------------------------------------------------------------------------- captions


def test_coco_captions_come_grouped_by_image_in_the_files_order(images, write):
    path = write("c.json", coco([image(42), image(7)], [said(1, 7, "A"), said(2, 42, "B"), said(3, 7, "C")]))
    read = read_captions(path, images)
    assert read.items == [
        CaptionItem(42, images / "COCO_val2014_000000000042.jpg", ("B",)),
        CaptionItem(7, images / "COCO_val2014_000000000007.jpg", ("A", "C")),
    ]
    assert read.bad == [] and read.as_dict() == {"items": 2, "bad": []}


def test_bad_coco_entries_are_named_and_the_rest_goes_on(images, write):
    entries = [image(42), image(5), image(42), {"file_name": "x.jpg"}, 3, image(8, file_name="../c.json"), image(7)]
    captions = [
        said(1, 42, "A"),
        said(2, 99, "B"),
        said(3, 5, "of the image that is not there"),
        said(4, 42, ""),
        {"id": 5, "image_id": 42},
        {"id": 6, "caption": "C"},
        said(7, True, "D"),
        said(8, 4.5, "E"),
        "text",
    ]
    read = read_captions(write("c.json", coco(entries, captions)), images)
    assert [item.image_id for item in read.items] == [42] and read.items[0].captions == ("A",)
    expected = [
        ("image 5", "there is no image file .*COCO_val2014_000000000005.jpg"),
        ("image 42", "is there twice"),
        (r"images\[3\]", '"id", got none'),
        (r"images\[4\]", '"id", got none'),
        ("image 8", "leads out of the image folder"),
        ("annotation 2", "image_id 99 is not among the images"),
        ("annotation 4", '"caption" is empty'),
        ("annotation 5", 'expected a text "caption", got none'),
        ("annotation 6", '"image_id", got none'),
        ("annotation 7", "got true"),
        ("annotation 8", "got 4.5"),
        (r"annotations\[8\]", '"image_id", got none'),
        ("image 7", "has no caption"),
    ]
    check(read.bad, "c.json", expected)


def check(bad, file, expected):
    assert len(bad) == len(expected), bad
    for (name, reason), (label, pattern) in zip(bad, expected, strict=True):
        assert re.fullmatch(f"{file}: {label}", name) and re.search(pattern, reason), (name, reason, label)


def karpathy(number, split="test", **more):
    entry = {"cocoid": number, "filepath": "val2014", "filename": f"{number}.jpg", "split": split, "imgid": 0}
    return entry | {"sentences": [{"raw": f"A {number}", "tokens": ["a"]}, {"raw": "B"}]} | more


def test_karpathys_split_is_read(images, write):
    path = write("k.json", {"dataset": "coco", "images": [karpathy(42), karpathy(7, "restval"), karpathy(1, "val")]})
    read = read_captions(path, images, split="test")
    assert read.items == [CaptionItem(42, images / "val2014" / "42.jpg", ("A 42", "B"))] and read.bad == []
    whole = read_captions(path, images)
    assert [item.image_id for item in whole.items] == [42, 7]
    check(whole.bad, "k.json", [("image 1", "there is no image file .*val2014/1.jpg")])
    # The folder may be that of the part itself.
    assert read_captions(path, images / "val2014", split="restval").items[0].image == images / "val2014" / "7.jpg"


def test_bad_entries_of_karpathys_split_are_named(images, write):
    entries = [karpathy(42), karpathy(42), karpathy(7, sentences=[]), karpathy(7, sentences=[{}]), {"cocoid": 3}]
    read = read_captions(write("k.json", {"images": entries}), images, split="test")
    assert len(read.items) == 1
    expected = [("image 42", "twice"), ("image 7", "no caption"), ("image 7", '"raw"'), ("image 3", '"split"')]
    check(read.bad, "k.json", expected)


# ------------------------------------------------------------------------------------------------------------ questions


def test_questions_come_with_their_ten_answers(images, write):
    questions = write("q.json", vqa([asked(420), asked(421), asked(70, 7, "How many?")]))
    people = ("2",) * 9 + ("",)
    truth = {"annotations": [answered(70, 7, people, answer_type="number"), answered(421), answered(420)]}
    read = read_vqa(questions, write("a.json", truth), images)
    file = images / "COCO_val2014_000000000042.jpg"
    assert read.bad == [] and [item.question_id for item in read.items] == [420, 421, 70]
    assert read.items[0] == VQAItem(420, 42, file, "What is it?", ("red",) * 10, "what is", "other")
    assert read.items[2].answers == people and read.items[2].answer_type == "number"


def test_questions_without_annotations_have_no_answers(images, write):
    read = read_vqa(write("q.json", vqa([asked(1)])), None, images)
    assert read.items == [VQAItem(1, 42, images / "COCO_val2014_000000000042.jpg", "What is it?")]


@pytest.mark.parametrize("subtype", ["val2014", None, "test-dev2015"])
def test_image_names_follow_the_subtype_or_the_plain_number(images, write, subtype):
    (images / "COCO_test2015_000000000011.jpg").write_bytes(b"x")
    questions = write("q.json", vqa([asked(1, 42), asked(2, 9), asked(3, 11)], data_subtype=subtype))
    found = [item.image.name for item in read_vqa(questions, None, images).items]
    own = {"val2014": ["COCO_val2014_000000000042.jpg"], "test-dev2015": ["COCO_test2015_000000000011.jpg"]}
    assert sorted(found) == sorted(["000000000009.jpg", *own.get(subtype, [])])


def test_a_pattern_names_other_files(images, write):
    questions = write("q.json", vqa([asked(1, 42), asked("b", "7"), asked(3, 8)]))
    read = read_vqa(questions, None, images, pattern="val2014/{image_id}.jpg")
    assert [item.question_id for item in read.items] == [1, "b"]
    check(read.bad, "q.json", [("question 3", "there is no image file .*8.jpg")])


def test_bad_questions_are_named_and_the_rest_goes_on(images, write):
    entries = [asked(1), asked(2, 5), asked(1), asked(3), asked(4), asked(5), asked(6, question=" "), asked(7, "x")]
    entries += [{"question_id": 8}, None, asked(9), asked(10, 5), asked(11, question="\ud800")]
    truth = [answered(1), answered(2, 5), answered(4, answers=[]), answered(5, 7), answered(1), answered(99)]
    truth += [{}, answered(9, answers=[3] * 10)]
    read = read_vqa(write("q.json", vqa(entries)), write("a.json", {"annotations": truth}), images)
    assert [item.question_id for item in read.items] == [1]
    mine = [pair for pair in read.bad if pair[0].startswith("q.json")]
    others = [pair for pair in read.bad if pair not in mine]
    expected = [
        ("question 2", "no image file .*000005.jpg"),
        ("question 1", "question_id is there twice"),
        ("question 3", "has no annotation"),
        ("question 4", '"answers" is empty'),
        ("question 5", "is about image 42, its annotation about image 7"),
        ("question 6", '"question" is empty'),
        ("question 7", "image_id 'x' does not fit"),
        ("question 8", '"image_id", got none'),
        (r"questions\[9\]", '"question_id", got none'),
        ("question 9", 'expected a text "answer", got 3'),
        ("question 10", "no image file .*000005.jpg"),
        ("question 11", '"question" is not text'),
    ]
    check(mine, "q.json", expected)
    expected = [("annotation 1", "twice"), (r"annotations\[6\]", "got none"), ("annotation 99", "not among")]
    check(others, "a.json", expected)


# ---------------------------------------------------------------------------------------------------------- whole files


@pytest.mark.parametrize(
    "content, named",
    [
        ('{"images": [', "c.json: is not JSON .*line 1 column 13"),
        ("", "c.json: is not JSON"),
        ("[]", "c.json: expected a JSON object, got a list"),
        ("[" * 100_000, "c.json: is not JSON that can be read .nested too deeply"),
        ('{"images": ' + "9" * 5000, "c.json: is not JSON that can be read .*digits"),
        ("{}", 'c.json: expected a list "images", got none'),
        ('{"images": {}, "annotations": []}', 'c.json: expected a list "images", got an object'),
        ('{"images": [], "annotations": 3}', 'c.json: expected a list "annotations", got 3'),
    ],
)
def test_files_that_cannot_be_used_are_named(images, write, content, named):
    with pytest.raises(AnnotationError, match=named):
        read_captions(write("c.json", content), images)


def test_other_errors_name_the_item(images, write, tmp_path):
    good = write("q.json", vqa([asked(1)]))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    karpathys = write("k.json", {"images": [karpathy(42), karpathy(7, "val")]})
    for call, named in [
        (lambda: read_captions(tmp_path / "none.json", images), "none.json: no such file"),
        (lambda: read_captions(tmp_path, images), f"{tmp_path.name}: is a directory"),
        (lambda: read_captions(tmp_path / "bytes.json", images), "bytes.json: is not UTF-8 text"),
        (lambda: read_captions(good, tmp_path / "other"), "images: there is no folder .*other"),
        (lambda: read_captions(karpathys, images, split="tset"), "split: expected one of test, val.*'tset'"),
        (lambda: read_captions(write("c.json", coco([], [])), images, split="test"), "split: .*COCO"),
        (lambda: read_vqa(good, good, images), 'q.json: expected a list "annotations", got none'),
        (lambda: read_vqa(good, None, images, pattern="x.jpg"), "pattern: .*{image_id}.*'x.jpg'"),
        (lambda: read_vqa(good, None, images, pattern="{name}.jpg"), "pattern: .*'{name}.jpg'"),
    ]:
        with pytest.raises(AnnotationError, match=named):
            call()


def test_a_file_with_a_byte_order_mark_is_read(images, write, tmp_path):
    content = json.dumps(vqa([asked(1)])).encode()
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + content)
    assert len(read_vqa(tmp_path / "bom.json", None, images).items) == 1
