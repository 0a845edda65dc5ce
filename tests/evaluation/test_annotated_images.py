"""The parts of an evaluation together: annotated image files are read, answered in batches, and scored; what is broken
is named and costs nothing else."""

import json

import numpy as np
import pytest
from PIL import Image

from lavit.data.annotations import read_captions, read_vqa
from lavit.data.images import load_image
from lavit.evaluation.captioning import score_scene_captions
from lavit.evaluation.runner import evaluate_items
from lavit.evaluation.vqa import evaluate_vqa
from lavit.shapes.questions import KINDS, questions
from lavit.shapes.world import CELLS, ShapesWorld


class Loaded:
    """Annotated images with their pixels."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index], load_image(self.items[index].image)

    def name(self, index):
        return str(self.items[index].image)


@pytest.fixture
def folder(tmp_path):
    """Six scenes as files, annotated as COCO captions and VQAv2; the third image is cut off, the sixth is missing."""
    world = ShapesWorld(4, "test")
    scenes = world.scenes(6)
    images, captions, asked, answered = [], [], [], []
    for i in range(6):
        name = f"COCO_val2014_{i:012d}.jpg"
        if i < 5:
            Image.fromarray(scenes.images[i]).save(tmp_path / name, "PNG")
        images.append({"id": i, "file_name": name})
        captions.append({"id": i, "image_id": i, "caption": scenes.captions[i]})
        for number, question in enumerate(questions(world, scenes.cells)[i]):
            key = {"question_id": 10 * i + number, "image_id": i}
            asked.append(key | {"question": question.text})
            types = {"question_type": question.kind, "answer_type": "other"}
            ten = [question.answer.upper(), *[question.answer] * 9]  # normalised only where they differ
            answered.append(key | types | {"answers": [{"answer": text, "answer_id": n} for n, text in enumerate(ten)]})
    broken = tmp_path / "COCO_val2014_000000000002.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (tmp_path / "questions.json").write_text(json.dumps({"questions": asked, "data_subtype": "val2014"}))
    (tmp_path / "answers.json").write_text(json.dumps({"annotations": answered}))
    return tmp_path


def test_captions_of_files_are_scored(folder):
    read = read_captions(folder / "captions.json", folder)
    assert [name for name, _ in read.bad] == ["captions.json: image 5"]
    done = evaluate_items(Loaded(read.items), lambda batch: [item.captions[0] for item, _ in batch], batch_size=2)
    assert [item.name for item in done.skipped] == [str(folder / "COCO_val2014_000000000002.jpg")]
    cells = ShapesWorld(4, "test").scenes(6).cells[list(done.results)]
    report = score_scene_captions(list(done.results.values()), cells)
    assert report.objects.scenes == 4 and report.objects.score.exact == 1
    assert cells.shape == (4, CELLS) and np.array_equal(list(done.results), [0, 1, 3, 4])


def test_answers_about_files_are_scored(folder):
    read = read_vqa(folder / "questions.json", folder / "answers.json", folder)
    assert len(read.items) == 20 and len(read.bad) == 4
    done = evaluate_items(
        Loaded(read.items), lambda batch: [item.answers[0].title() for item, _ in batch], batch_size=3
    )
    assert len(done.skipped) == 4
    score = evaluate_vqa(read.items, {read.items[i].question_id: answer for i, answer in done.results.items()})
    assert score.overall.accuracy == 1 and score.overall.questions == 16
    assert score.unanswered == [20, 21, 22, 23] and set(score.by_question_type) == set(KINDS)
