"""Laws of the readers of NoCaps, Flickr30k, OK-VQA and VizWiz: each one's own published file is read as it is."""

import json

import pytest

from lavit.data.annotations import AnnotationError, CaptionItem, VQAItem, read_captions, read_vqa


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "COCO_val2014_000000000042.jpg"):
        (folder / name).write_bytes(b"x")
    return folder


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------------- captions


def nocaps(**more):
    listed = [{"id": 0, "file_name": "a.jpg", "open_images_id": "a", "domain": "near-domain"}]
    listed += [{"id": 1, "file_name": "b.jpg", "open_images_id": "b", "domain": "out-domain"}]
    return {"images": listed} | more


def test_nocaps_images_keep_their_domain(images, tmp_path):
    said = [{"id": n, "image_id": n % 2, "caption": f"text {n}"} for n in range(4)]
    read = read_captions(write(tmp_path / "nocaps.json", nocaps(annotations=said)), images)
    first = CaptionItem(0, images / "a.jpg", ("text 0", "text 2"), "near-domain")
    assert read.items == [first, CaptionItem(1, images / "b.jpg", ("text 1", "text 3"), "out-domain")]
    assert read.bad == []


def test_images_of_a_test_set_are_items_only_where_asked_for(images, tmp_path):
    path = write(tmp_path / "nocaps_test.json", nocaps())
    read = read_captions(path, images, captionless=True)
    assert [(item.image_id, item.captions, item.group) for item in read.items] == [
        (0, (), "near-domain"),
        (1, (), "out-domain"),
    ]
    assert read_captions(path, images).items == []
    # An image that lacks captions in a file that has some is left out either way.
    said = [{"id": 1, "image_id": 0, "caption": "text"}]
    path = write(tmp_path / "half.json", nocaps(annotations=said))
    assert read_captions(path, images, captionless=True).bad == [("half.json: image 1", "has no caption")]


def test_captions_with_one_number_count_once(images, tmp_path):
    said = [{"id": 5, "image_id": 0, "caption": "first"}, {"id": 5, "image_id": 1, "caption": "second"}]
    read = read_captions(write(tmp_path / "c.json", nocaps(annotations=said)), images)
    assert [item.captions for item in read.items] == [("first",)]
    assert ("c.json: annotation 5", "is there twice; the first is taken") in read.bad


TOKEN = "a.jpg#0\tA dog , running .\na.jpg#1\tTwo | dogs\n\nb.jpg#0\tA cat\nb.jpg#0\tagain\ngone.jpg#0\tx\nno tab\n"
CSV = (
    'image_name| comment_number| comment\na.jpg| 0| A dog , running .\na.jpg| 1| "Two" | dogs\n'
    "b.jpg| 0| A cat\nb.jpg| 0| again\ngone.jpg| 0| x\nb.jpg| 4   A dog\n"
)


@pytest.mark.parametrize(
    "name, text, second", [("results_20130124.token", TOKEN, "Two | dogs"), ("results.csv", CSV, '"Two" | dogs')]
)
def test_flickr30k_tables_are_read_and_their_broken_lines_named(images, tmp_path, name, text, second):
    read = read_captions(write(tmp_path / name, text), images)
    assert read.items == [
        CaptionItem("a.jpg", images / "a.jpg", ("A dog , running .", second)),
        CaptionItem("b.jpg", images / "b.jpg", ("A cat",)),
    ]
    said = dict(read.bad)
    assert said[f"{name}: b.jpg#0"] == "is there twice; the first is taken"
    assert "there is no image file" in said[f"{name}: image gone.jpg"]
    assert [reason for label, reason in read.bad if ": line 7" in label][0].startswith("expected ")
    assert len(read.bad) == 3
    with pytest.raises(AnnotationError, match="split.*Flickr30k's table, which has no splits.*'test'"):
        read_captions(tmp_path / name, images, split="test")
    with pytest.raises(AnnotationError, match="captions: cannot read .*none.csv"):
        read_captions(tmp_path / "none.csv", images)


def test_karpathys_flickr30k_is_read_by_imgid(images, tmp_path):
    entry = {"imgid": 3, "filename": "a.jpg", "split": "test", "sentences": [{"raw": "A dog."}], "sentids": [1]}
    path = write(tmp_path / "dataset_flickr30k.json", {"images": [entry], "dataset": "flickr30k"})
    assert read_captions(path, images, split="test").items == [CaptionItem(3, images / "a.jpg", ("A dog.",))]


# ------------------------------------------------------------------------------------------------------------ questions


def ten(text="red"):
    return [{"answer": text, "answer_confidence": "yes"} for _ in range(10)]


def test_vizwiz_has_its_answers_in_one_file(images, tmp_path):
    entries = [
        {"image": "a.jpg", "question": "What?", "answers": ten(), "answer_type": "other", "answerable": 1},
        {"image": "b.jpg", "question": "Is it?", "answers": [], "answer_type": "yes/no", "answerable": 1},
        {"image": "a.jpg", "question": "Again?", "answers": ten(), "answer_type": "other"},
        {"image": "gone.jpg", "question": "Where?"},
        "no object",
    ]
    read = read_vqa(write(tmp_path / "val.json", entries), None, images)
    assert read.vizwiz
    assert read.items == [VQAItem("a.jpg", "a.jpg", images / "a.jpg", "What?", ("red",) * 10, "", "other")]
    assert [reason.split(";")[0][:22] for _, reason in read.bad] == [
        '"answers" is empty',
        "is there twice",
        "there is no image file",
        'expected a text "image',
    ]
    with pytest.raises(AnnotationError, match="answers.json: val.json is VizWiz's, which has the answers in it"):
        read_vqa(tmp_path / "val.json", tmp_path / "answers.json", images)


def test_vizwiz_questions_of_the_test_set_have_no_answers(images, tmp_path):
    path = write(tmp_path / "test.json", [{"image": "b.jpg", "question": "What?"}])
    assert read_vqa(path, None, images).items == [VQAItem("b.jpg", "b.jpg", images / "b.jpg", "What?")]


def test_ok_vqa_is_read_as_vqav2(images, tmp_path):
    asked = {"question_id": 421, "image_id": 42, "question": "Why?"}
    questions = {"questions": [asked], "data_subtype": "val2014", "license": {}}
    rows = [{"answer_id": n, "raw_answer": "racing", "answer_confidence": "yes", "answer": "race"} for n in range(10)]
    kinds = {"question_type": "four", "answer_type": "other", "confidence": 3}
    answers = {"annotations": [{"question_id": 421, "image_id": 42, "answers": rows, **kinds}]}
    read = read_vqa(write(tmp_path / "q.json", questions), write(tmp_path / "a.json", answers), images)
    assert not read.vizwiz and read.bad == []
    assert (read.items[0].answers, read.items[0].question_type) == (("race",) * 10, "four")
