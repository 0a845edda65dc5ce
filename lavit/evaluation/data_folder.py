"""The images and annotations that an evaluation is given, in whichever files and formats."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lavit.data.annotations import AnnotationError, CaptionItem, VQAItem, read_captions, read_vqa
from lavit.data.image_folder import ImageFolder

CAPTIONS = ("captions.json", "captions.token", "captions.csv")
QUESTIONS, ANSWERS, IMAGES = "questions.json", "answers.json", "images"
ANNOTATIONS = (*CAPTIONS, QUESTIONS, ANSWERS)


@dataclass(frozen=True)
class DataFolder:
    """images: the folder of the image files. vizwiz: the questions are VizWiz's. annotated: there is a file of captions
    or questions. bad_captions, bad_questions: (name, reason) of each entry left out of the files of either."""

    images: Path
    captions: list[CaptionItem] = field(default_factory=list)
    questions: list[VQAItem] = field(default_factory=list)
    vizwiz: bool = False
    annotated: bool = False
    bad_captions: list[tuple[str, str]] = field(default_factory=list)
    bad_questions: list[tuple[str, str]] = field(default_factory=list)

    @property
    def bad(self) -> list[tuple[str, str]]:
        return self.bad_captions + self.bad_questions

    def pictures(self) -> list[Path]:
        """The captioned image files, each once; without captions, all below the folder. ValueError for none."""
        if self.captions:
            return list(dict.fromkeys(item.image for item in self.captions))
        return ImageFolder(self.images).paths


def read_data(
    root: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    captions: str | os.PathLike[str] | None = None,
    questions: str | os.PathLike[str] | None = None,
    answers: str | os.PathLike[str] | None = None,
    split: str | None = None,
) -> DataFolder:
    """What a folder holds: images/, captions.json (.token, .csv), questions.json, answers.json, each of which can be
    given by a path of its own. Without images/, the images are in the folder itself. They are not opened.

    split: of Karpathy's captions. Raises FileNotFoundError or NotADirectoryError where there is no folder,
    AnnotationError for a file that is given and missing, or cannot be used at all.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"data: there is no folder {root}")
    if not root.is_dir():
        raise NotADirectoryError(f"data: expected a folder, got the file {root}")
    place = Path(images) if images is not None else root / IMAGES
    if images is None and not place.is_dir():
        place = root
    told = _given(captions, [root / name for name in CAPTIONS])
    asked, answered = _given(questions, [root / QUESTIONS]), _given(answers, [root / ANSWERS])
    if answered is not None and asked is None:
        raise AnnotationError(f"{answered}: expected {QUESTIONS} beside it, the questions that it answers")
    if split is not None and told is None:
        raise AnnotationError(f"split: {root} has no captions, whose split it could be (asked for {split!r})")
    bad: list[tuple[str, str]] = []
    items: list[CaptionItem] = []
    if told is not None:
        read = read_captions(told, place, split=split, captionless=True)
        items, bad = read.items, list(read.bad)
    if asked is None:
        return DataFolder(place, items, annotated=told is not None, bad_captions=bad)
    vqa = read_vqa(asked, answered, place, files={item.image_id: item.image for item in items})
    return DataFolder(place, items, vqa.items, vqa.vizwiz, True, bad, vqa.bad)


def fingerprint(items: Sequence[CaptionItem | VQAItem | Path], root: Path) -> str:
    """Of what is asked, in its order, and of the image files' names and sizes; wherever the folder lies."""
    digest = hashlib.blake2b(digest_size=16)
    sizes: dict[Path, int] = {}
    for item in items:
        path = item if isinstance(item, Path) else item.image
        if path not in sizes:
            sizes[path] = path.stat().st_size if path.is_file() else -1
        if isinstance(item, VQAItem):
            words: tuple[object, ...] = (item.question_id, item.question, item.answers)
        else:
            words = () if isinstance(item, Path) else (item.image_id, item.captions, item.group)
        name = os.path.relpath(path, root)
        digest.update(repr((name, sizes[path], words)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _given(path: str | os.PathLike[str] | None, places: Sequence[Path]) -> Path | None:
    """The path that is given, there or not, or else the first place where there is a file."""
    return Path(path) if path is not None else next((place for place in places if place.exists()), None)
