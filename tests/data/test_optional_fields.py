"""Laws of what an annotation file needs: what nothing refers to may be absent, and a file of which nothing can be used
says why."""

import json

import pytest

from lavit.data.annotation_entries import count_reasons, first_and_reasons
from lavit.data.annotations import (
    AnnotationError,
    CaptionItem,
    VQAItem,
    read_captions,
    read_edits,
    read_texts,
    read_vqa,
)
from lavit.data.captioned_folder import read_folder

NUMBERED = "000000000007.jpg"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg", NUMBERED):
        (tmp_path / "images" / name).write_bytes(b"x")
    return tmp_path


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def vqa(root, *annotations, questions=None):
    listed = questions or [{"question_id": n, "image_id": 7, "question": "What?"} for n in range(len(annotations))]
    asked = write(root / "questions.json", {"questions": listed})
    told = write(root / "answers.json", {"annotations": list(annotations)}) if annotations else None
    return read_vqa(asked, told, root / "images")


# ------------------------------------------------------------------------------------------------------------ questions


@pytest.mark.parametrize(
    "fields, answers",
    [
        ({"answers": [{"answer": "red"}]}, ("red",)),
        ({"answers": [{"answer": "red"}, {"answer": "blue"}, {"answer": ""}]}, ("red", "blue", "")),
        ({"answers": ["red", "blue"]}, ("red", "blue")),
        ({"multiple_choice_answer": "red"}, ("red",)),
        ({"multiple_choice_answer": "red", "answers": [{"answer": "blue"}]}, ("blue",)),
        ({"multiple_choice_answer": "red", "answers": None}, ("red",)),
    ],
)
def test_any_number_of_answers_is_enough(root, fields, answers):
    read = vqa(root, {"question_id": 0, **fields})
    assert read.bad == [] and read.items == [VQAItem(0, 7, root / "images" / NUMBERED, "What?", answers)]


def test_types_are_taken_where_they_are(root):
    read = vqa(
        root,
        {"question_id": 0, "answers": ["red"], "question_type": "what", "answer_type": None},
        {"question_id": 1, "answers": ["red"], "answer_type": "other", "image_id": 7},
    )
    assert [(item.question_type, item.answer_type) for item in read.items] == [("what", ""), ("", "other")]


def test_answers_that_are_none_are_named(root):
    fields = [{"answers": []}, {}, {"answers": "red"}, {"answers": ["red"], "question_type": 3}]
    fields += [{"multiple_choice_answer": " "}, {"answers": ["red"], "image_id": 8}]
    read = vqa(root, *({"question_id": number, **own} for number, own in enumerate(fields)))
    assert read.items == [] and [reason for _, reason in read.bad] == [
        '"answers" is empty',
        'expected a list "answers", got none',
        'expected a list "answers", got a text',
        'expected a text "question_type", got 3',
        '"multiple_choice_answer" is empty',
        "is about image 7, its annotation about image 8",
    ]


def test_questions_need_numbers_only_where_answers_name_them(root):
    bare = [{"image_id": 7, "question": "What?"}, {"image_id": 7, "question": "Why?", "question_id": None}]
    assert [item.question_id for item in vqa(root, questions=bare).items] == [0, 1]
    read = vqa(root, {"question_id": 0, "answers": ["red"]}, questions=bare)
    assert read.items == [] and read.bad[0][1] == 'expected a whole number or a text "question_id", got none'


def test_vizwiz_has_any_number_of_answers_too(root):
    entries = [{"image": "a.jpg", "question": "What?", "answers": [{"answer": "red"}], "answer_type": None}]
    read = read_vqa(write(root / "val.json", entries), None, root / "images")
    assert read.items == [VQAItem("a.jpg", "a.jpg", root / "images" / "a.jpg", "What?", ("red",))]


# ------------------------------------------------------------------------------------------------------------- captions


def test_a_caption_needs_no_number_and_an_image_only_where_captions_name_it(root):
    images = [{"id": 1, "file_name": "a.jpg"}]
    said = [{"image_id": 1, "caption": "A"}, {"id": None, "image_id": 1, "caption": "B"}]
    path = write(root / "captions.json", {"images": images, "annotations": said})
    read = read_captions(path, root / "images")
    assert read.items == [CaptionItem(1, root / "images" / "a.jpg", ("A", "B"))] and read.bad == []
    bare = {"images": [{"file_name": "a.jpg"}, {"file_name": "b.jpg", "id": 4}]}
    read = read_captions(write(root / "bare.json", bare), root / "images", captionless=True)
    assert [item.image_id for item in read.items] == ["a.jpg", 4]


def test_karpathys_images_need_a_name_and_sentences(root):
    path = write(root / "k.json", {"images": [{"filename": "a.jpg", "sentences": [{"raw": "A"}]}]})
    assert read_captions(path, root / "images").items == [CaptionItem("a.jpg", root / "images" / "a.jpg", ("A",))]
    with pytest.raises(AnnotationError, match="split: expected one of .*got 'test'"):
        read_captions(path, root / "images", split="test")


# ------------------------------------------------------------------------------------------------- nothing can be used


def test_reasons_that_differ_by_their_entry_are_one():
    bad = [("e.jsonl: line 1", "there is no image file /data/my images/1.png")]
    bad += [("e.jsonl: line 2", "there is no image file /data/my images/two.png")]
    bad += [(f"a: {n}", f"image_id {n} is not among the images") for n in ("x", 3, 4)]
    bad += [("a: 9", "is about image cat, its annotation about image 7"), ("f", "is not UTF-8 text (byte 3)")]
    assert count_reasons(bad) == (
        "3 × image_id … is not among the images, 2 × there is no image file …, "
        "1 × is about image …, its annotation about image …, 1 × is not UTF-8 text (byte …)"
    )
    assert first_and_reasons(bad[:2]) == (
        "e.jsonl: line 1: there is no image file /data/my images/1.png; of all 2: 2 × there is no image file …"
    )
    assert first_and_reasons(bad[-1:]) == "f: is not UTF-8 text (byte 3)"


def test_many_kinds_of_reasons_are_not_told_without_end():
    bad = [("n", f"expected a {'x' * length}") for length in range(1, 9)] + [("n", "expected a x")]
    assert count_reasons(bad).startswith("2 × expected a x, ") and count_reasons(bad).endswith(", 3 × others")


def captioned(root):
    told = {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": [{"image_id": 7, "caption": "A"}]}
    write(root / "captions.json", told)
    return root


def test_a_folder_says_what_it_lacks_and_what_it_has_that_cannot_be_used(root):
    folder = read_folder(captioned(root))
    assert folder.lacks("caption") is None and folder.lacks("image") is None
    assert folder.lacks("question") == f"{root} has no questions.json with answers.json"
    assert folder.lacks("edit") == f"{root} has no edits.jsonl"
    assert folder.lacks("text") == f"{root} has no text.jsonl, and there is no --text FILE"
    vqa(root, *({"question_id": number, "answers": []} for number in (0, 1)), {"question_id": 1, "answers": ["x"]})
    write(root / "edits.jsonl", '{"image": "a.jpg", "result": "b.jpg"}\n{"image": "c.jpg", "text": "turn"}\n')
    folder = read_folder(root)
    said = folder.lacks("question")
    assert said.startswith(f"nothing in questions.json with answers.json of {root} can be used; answers.json: ")
    assert '2 × "answers" is empty' in said and "of all 4: " in said
    assert folder.lacks("edit") == (
        f'nothing in edits.jsonl of {root} can be used; edits.jsonl: line 1: expected a text "text", got none; '
        'of all 2: 1 × expected a text "text", got none, 1 × there is no image file …'
    )


def test_a_folder_with_vizwiz_questions_has_their_answers(root):
    entries = [{"image": "a.jpg", "question": "What?", "answers": ["red"]}]
    write(captioned(root) / "questions.json", entries)
    folder = read_folder(root)
    assert folder.answered and folder.lacks("question") is None
    write(root / "questions.json", [{"image": "a.jpg", "question": "What?"}])
    assert read_folder(root).lacks("question") == f"{root} has no questions.json with answers.json"


def test_edits_and_texts_of_which_none_can_be_used_say_why(root):
    read = read_edits(write(root / "e.jsonl", '{"image": "a.jpg"}\n[]\n'), root / "images")
    assert read.items == [] and len(read.bad) == 2
    why = r"no text in .*t.jsonl \(2 lines cannot be used: t.jsonl: line 1: expected"
    with pytest.raises(AnnotationError, match=why):
        read_texts(write(root / "t.jsonl", "[1]\n{}\n"))
