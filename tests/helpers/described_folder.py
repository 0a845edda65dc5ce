"""A folder of scenes with captions, questions and edits, in the form that training and evaluation read."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from lavit.shapes.edits import edits
from lavit.shapes.questions import questions
from lavit.shapes.world import ShapesWorld


def write_pictures(folder: Path, count: int = 5) -> list[Path]:
    """Scenes as 0.png, 1.png, ..."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path, image in zip(paths, ShapesWorld(0).scenes(count).images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def write_described(root: Path, count: int = 5) -> Path:
    """Every scene with its caption, its questions, and a change that is asked for."""
    world = ShapesWorld(0)
    scenes = world.scenes(count)
    write_pictures(root / "images", count)
    captions = [{"id": i, "image_id": i, "caption": text} for i, text in enumerate(scenes.captions)]
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(count)]
    _write(root / "captions.json", {"images": images, "annotations": captions})
    asked, answers = [], []
    for i, own in enumerate(questions(world, scenes.cells)):
        for question in own:
            key = {"question_id": len(asked), "image_id": i}
            people = [{"answer": question.answer}] * 10
            asked.append({**key, "question": question.text})
            answers.append({**key, "question_type": question.kind, "answer_type": "other", "answers": people})
    _write(root / "questions.json", {"questions": asked})
    _write(root / "answers.json", {"annotations": answers})
    pairs = edits(world, count, scenes=scenes)
    lines = []
    for i, (image, text) in enumerate(zip(pairs.after.images, pairs.texts, strict=True)):
        Image.fromarray(image).save(root / "images" / f"changed{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "text": text, "result": f"changed{i}.png"}) + "\n")
    (root / "edits.jsonl").write_text("".join(lines), encoding="utf-8")
    return root


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
