"""Folders of small captioned pictures: a coloured square on a coloured ground, and the words for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (40, 70, 220), "white": (240, 240, 240)}


def captioned_folder(root: Path, count: int, size: int = 32) -> Path:
    """`count` pictures with a caption each, in the form that `lavit.data.captioned_folder` reads."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    random = np.random.default_rng(0)
    names = list(COLOURS)
    for number in range(count):
        ground, square = random.permutation(len(names))[:2]
        pixels = np.empty((size, size, 3), np.uint8)
        pixels[:] = COLOURS[names[ground]]
        y, x = random.integers(0, size // 2, 2)
        pixels[y : y + size // 2, x : x + size // 2] = COLOURS[names[square]]
        Image.fromarray(pixels).save(root / "images" / f"{number:03}.png")
        images.append({"id": number, "file_name": f"{number:03}.png"})
        caption = f"a {names[square]} square on {names[ground]}"
        annotations.append({"id": number, "image_id": number, "caption": caption})
    (root / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return root
