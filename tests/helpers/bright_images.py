"""A model that says of an image how bright it is, gray images, and `lavit evaluate` on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from lavit.cli import main
from lavit.commands import evaluate_run as evaluate


class BrightnessModel:
    """Says of an image how bright it is; stops at one."""

    config = SimpleNamespace(image_objective="classify")
    visual_tokenizer = None

    def __init__(self):
        self.seen, self.asked, self.stop, self.unsure = [], [], None, ()

    def bright(self, image):
        value = int(np.asarray(image).mean())
        if value == self.stop:
            raise KeyboardInterrupt
        self.seen.append(value)
        return value

    def caption(self, images, processor, **settings):
        return [f"a picture of thing {self.bright(image)}" for image in images]

    def answer(self, images, questions, processor, **settings):
        self.asked += questions
        values = [self.bright(image) for image in images]
        if questions[0].startswith("Is the question"):
            return ["No." if value in self.unsure else "yes" for value in values]
        return [str(value) for value in values]


def runner(monkeypatch: Any, capsys: Any, tmp_path: Path, model: BrightnessModel) -> Callable[..., Any]:
    """Runs the command; its exit code, what it wrote to out.json, and the two outputs."""

    def run(*words, output=True):
        monkeypatch.setattr(evaluate, "load_lavit", lambda folder, device: (model, None))
        target = tmp_path / "out.json"
        target.unlink(missing_ok=True)
        (tmp_path / "model").mkdir(exist_ok=True)
        more = ["--output", target] if output else []
        code = main(["evaluate", *map(str, ["--model", tmp_path / "model", "--device", "cpu", *more, *words])])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, json.loads(target.read_text()) if target.exists() else None, said.out, said.err

    return run


def gray_images(folder: Path) -> Path:
    """Eight of brightness 0, 10, ..., 70."""
    folder.mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (40, 36), (10 * number,) * 3).save(folder / f"{number}.png")
    return folder


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def captioned(images: Path) -> Path:
    """As NoCaps has it; of the images 4 to 7 people say something else than the model."""
    kinds = ("in-domain", "out-domain")
    listed = [{"id": n, "file_name": f"{n}.png", "domain": kinds[n % 2]} for n in range(8)]
    said = [f"a picture of thing {10 * n}" if n < 4 else f"nothing like it {n}" for n in range(8)]
    rows = [{"id": n, "image_id": n, "caption": text} for n, text in enumerate(said)]
    return write(images.parent / "captions.json", {"images": listed, "annotations": rows})
