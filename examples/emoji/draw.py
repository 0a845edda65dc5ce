"""Writes the emoji world: a folder of pictures with captions, questions, answers and edits for each split.

    OUT/train/, OUT/held-out-combinations/, OUT/held-out-pictures/
        images/  captions.json  questions.json  answers.json  edits.jsonl
    OUT/world.json   everything that is true of each picture
    OUT/LICENCE.txt  of the font
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.emoji.colours import BACKGROUNDS
from examples.emoji.glyphs import LICENCE, Glyphs
from examples.emoji.names import unicode_version
from examples.emoji.pictures import SIZES, Picture, find_emoji, render
from examples.emoji.splits import SPLITS, choose, split
from examples.emoji.texts import YES_NO, edits, questions

WORLD, FONTS_LICENCE = "world.json", "LICENCE.txt"
DRAWING = ".drawing"
"""A file in a folder that is being drawn: what else is there is no world yet, and was put there by `draw`."""


@dataclass(frozen=True)
class Settings:
    """size: of the pictures, in pixels. backgrounds: on how many each emoji is shown. limit: of the emoji; None: all.

    Raises ValueError for what is out of range.
    """

    size: int = 64
    seed: int = 0
    backgrounds: int = 2
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size: expected one of {', '.join(map(str, SIZES))}, got {self.size}")
        if not 1 <= self.backgrounds < len(BACKGROUNDS):
            raise ValueError(f"backgrounds: expected 1 to {len(BACKGROUNDS) - 1}, got {self.backgrounds}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: expected at least 1, got {self.limit}")


def draw(out: str | os.PathLike[str], glyphs: Glyphs, settings: Settings | None = None) -> dict[str, Any]:
    """Draws the world into a new or empty folder and returns the counts that world.json has.

    A folder that is this very world stays as it is, and one that was cut off while it was drawn is drawn anew. Raises
    FileExistsError for a folder with something else in it.
    """
    settings = settings or Settings()
    root = Path(out)
    kind = {
        "glyphs": glyphs.about,
        "unicode": unicode_version(),
        "size": settings.size,
        "seed": settings.seed,
        "backgrounds_of_each": settings.backgrounds,
        "limit": settings.limit,
    }
    if (root / DRAWING).is_file():
        _clear(root)
    elif (root / WORLD).is_file():
        told = json.loads((root / WORLD).read_text(encoding="utf-8"))
        if {name: told.get(name) for name in kind} == kind:
            return told["counts"]
    if root.exists() and (not root.is_dir() or any(path.name != DRAWING for path in root.iterdir())):
        raise FileExistsError(f"OUT: expected a new or empty folder, got {root}")
    begun = time.perf_counter()
    found = find_emoji(glyphs)
    parts = split(choose(found.drawings, settings.limit, settings.seed), settings.backgrounds, settings.seed)
    counts: dict[str, Any] = {}
    listed: list[dict[str, Any]] = []
    root.mkdir(parents=True, exist_ok=True)
    (root / DRAWING).touch()
    for name in SPLITS:
        folder = root / name
        (folder / "images").mkdir(parents=True)
        pictures = parts[name]
        for picture, image in zip(pictures, render(glyphs, pictures, settings.size), strict=True):
            image.save(folder / "images" / picture.file)
        counts[name] = _write_texts(folder, pictures, settings)
        listed += [{"split": name, **truth(picture)} for picture in pictures]
    (root / FONTS_LICENCE).write_text(f"{LICENCE}\n", encoding="utf-8")
    counts["emoji"] = len({entry["full_name"] for entry in listed})
    counts["seconds"] = round(time.perf_counter() - begun, 1)
    world = {
        **kind,
        "backgrounds": {name: list(rgb) for name, rgb in BACKGROUNDS.items()},
        "counts": counts,
        "left_out": [{"name": name, "same_as": other} for name, other in found.same],
        "pictures": listed,
    }
    _write(root / WORLD, world)
    (root / DRAWING).unlink()
    return counts


def _clear(root: Path) -> None:
    """Removes what a drawing that was cut off has left."""
    for name in SPLITS:
        shutil.rmtree(root / name, ignore_errors=True)
    for name in (FONTS_LICENCE, WORLD):
        (root / name).unlink(missing_ok=True)


def truth(picture: Picture) -> dict[str, Any]:
    """Everything that is true of a picture, as world.json has it."""
    emoji, colour = picture.emoji, picture.drawing.colour
    return {
        "file": picture.file,
        "code_points": emoji.code_points,
        "full_name": emoji.full_name,
        "name": emoji.name,
        "base": emoji.base,
        "kind": emoji.kind,
        "tone": emoji.tone,
        "gender": emoji.gender,
        "hair": emoji.hair,
        "profession": emoji.profession,
        "colour": colour.name,
        "colour_share": round(colour.share, 4),
        "colour_clear": colour.clear,
        "background": picture.background,
        "seen_share": round(picture.drawing.seen[picture.background], 4),
        "low_contrast": picture.low_contrast,
        "caption": picture.caption,
    }


def _write_texts(folder: Path, pictures: list[Picture], settings: Settings) -> dict[str, Any]:
    number = {picture: index for index, picture in enumerate(pictures, 1)}
    captions = {
        "images": [{"id": number[picture], "file_name": picture.file} for picture in pictures],
        "annotations": [
            {"id": number[picture], "image_id": number[picture], "caption": picture.caption} for picture in pictures
        ],
    }
    _write(folder / "captions.json", captions)
    asked = list(enumerate(questions(pictures, settings.seed), 1))
    entries = [{"question_id": key, "image_id": number[q.picture], "question": q.text} for key, q in asked]
    _write(folder / "questions.json", {"questions": entries})
    answers = [
        {
            "question_id": key,
            "image_id": number[question.picture],
            "question_type": question.kind,
            "answer_type": "yes/no" if question.kind == YES_NO else "other",
            "answers": [{"answer": question.answer}],
        }
        for key, question in asked
    ]
    _write(folder / "answers.json", {"annotations": answers})
    changes = edits(pictures, settings.seed)
    lines = [
        json.dumps({"image": edit.before.file, "text": edit.text, "result": edit.after.file, "type": edit.kind})
        for edit in changes
    ]
    (folder / "edits.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {
        "pictures": len(pictures),
        "names": len({picture.emoji.full_name for picture in pictures}),
        "low_contrast": sum(picture.low_contrast for picture in pictures),
        "questions": _counted(question.kind for _, question in asked),
        "edits": _counted(edit.kind for edit in changes),
    }


def _counted(kinds: Iterable[str]) -> dict[str, int]:
    return dict(Counter(kinds))


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
