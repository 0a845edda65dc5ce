"""Scenes of the shapes world as a folder of captioned images."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from lavit.shapes.questions import questions
from lavit.shapes.world import ShapesWorld


def captioned_scenes(root: Path, count: int = 40, side: int = 32) -> Path:
    """The first scenes with captions, and a question with its answer about each. side: pixels of the images."""
    world = ShapesWorld(5)
    scenes = world.scenes(count)
    (root / "images").mkdir(parents=True)
    for number, image in enumerate(scenes.images):
        Image.fromarray(image).resize((side, side)).save(root / "images" / f"{number}.png")
    files = [{"id": number, "file_name": f"{number}.png"} for number in range(count)]
    texts = [{"id": number, "image_id": number, "caption": text} for number, text in enumerate(scenes.captions)]
    (root / "captions.json").write_text(json.dumps({"images": files, "annotations": texts}))
    asked, answered = [], []
    for number, each in enumerate(questions(world, scenes.cells)):
        ids = {"question_id": number, "image_id": number}
        asked.append({**ids, "question": each[0].text})
        people = [{"answer": each[0].answer}] * 10
        answered.append({**ids, "question_type": "how", "answer_type": "number", "answers": people})
    (root / "questions.json").write_text(json.dumps({"questions": asked}))
    (root / "answers.json").write_text(json.dumps({"annotations": answered}))
    return root
