"""A folder of captioned images as training sequences: captioned, asked about, asked for, and text alone.

    FOLDER/images/         the image files
    FOLDER/captions.json   COCO's captions, or Karpathy's split of them
    FOLDER/questions.json  optional: VQAv2's questions, or VizWiz's with their answers
    FOLDER/answers.json    optional: VQAv2's annotations, the answers to them
    FOLDER/edits.jsonl     optional: {"image": FILE, "text": ..., "result": FILE} a line, images asked for with an image
    FOLDER/text.jsonl      optional: a text a line, as {"text": ...} or as a JSON text; or text.txt, a plain text a line

A question is about the image of captions.json with its ``image_id``, or else about the file that VQAv2 gives that id.
An example of each file is in docs/data.md.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lavit.data.annotation_entries import first_and_reasons
from lavit.data.annotations import (
    AnnotationError,
    CaptionItem,
    EditItem,
    VQAItem,
    read_captions,
    read_edits,
    read_texts,
    read_vqa,
)
from lavit.data.image_folder import ImageFiles as ImageFiles
from lavit.data.mixture import Source
from lavit.data.sequences import EDIT, KINDS, PROMPT, AskedSource, ListedSource, Sequencing

CAPTIONS, QUESTIONS, ANSWERS, EDITS = "captions.json", "questions.json", "answers.json", "edits.jsonl"
TEXTS = ("text.jsonl", "text.txt")


@dataclass(frozen=True)
class CaptionedFolder:
    """What a folder holds. answered: there are answers to the questions. bad: (name, reason) of each entry left out."""

    root: Path
    captions: list[CaptionItem]
    questions: list[VQAItem] = field(default_factory=list)
    answered: bool = False
    edits: list[EditItem] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)

    @property
    def paths(self) -> list[Path]:
        """The image files, each once."""
        told, asked = ([item.image for item in items] for items in (self.captions, self.questions))
        changed = [path for item in self.edits for path in (item.image, item.result)]
        return list(dict.fromkeys([*told, *asked, *changed]))

    def lacks(self, kind: str) -> str | None:
        """Why there is no sample of a kind, one of ``KINDS`` or ``EDIT``; None where there is one."""
        there, what, files = {
            "question": (self.answered and self.questions, f"{QUESTIONS} with {ANSWERS}", (QUESTIONS, ANSWERS)),
            EDIT: (self.edits, EDITS, (EDITS,)),
            "text": (self.texts, f"{TEXTS[0]}, and there is no --text FILE", ()),
        }.get(kind, (self.captions, "captions", (CAPTIONS,)))
        if there:
            return None
        bad = [pair for pair in self.bad if pair[0].partition(":")[0] in files]
        if bad and all((self.root / name).exists() for name in files):
            return f"nothing in {what} of {self.root} can be used; {first_and_reasons(bad)}"
        return f"{self.root} has no {what}" + (f"; {first_and_reasons(bad)}" if bad else "")

    def sentences(self) -> Iterator[str]:
        """Every text of it, to train a tokenizer on."""
        for item in self.captions:
            yield from item.captions
        for asked in self.questions:
            yield f"{PROMPT.format(asked.question)} {usual_answer(asked.answers)}"
        for edit in self.edits:
            yield edit.text
        yield from self.texts


def read_folder(
    root: str | os.PathLike[str],
    *,
    split: str | None = None,
    text: str | os.PathLike[str] | None = None,
    texts: bool = True,
    edits: bool = True,
) -> CaptionedFolder:
    """What a folder of the form above holds. Its images are not opened.

    split: of Karpathy's file "train", "restval", "val" or "test"; None: all. text: a file of texts instead of the
    folder's. texts, edits: False leaves these unread. Of a split, edits are those between its images.
    Raises FileNotFoundError or NotADirectoryError where there is no folder, AnnotationError for a file that is missing
    or cannot be used at all.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"data: there is no folder {root}")
    if not root.is_dir():
        raise NotADirectoryError(f"data: expected a folder, got the file {root}")
    images = root / "images"
    captions = read_captions(root / CAPTIONS, images, split=split)
    bad = list(captions.bad)
    asked: list[VQAItem] = []
    answered = False
    questions, answers = root / QUESTIONS, root / ANSWERS
    if answers.exists() and not questions.exists():
        raise AnnotationError(f"{answers}: expected {questions.name} beside it, the questions that it answers")
    if questions.exists():
        files = {item.image_id: item.image for item in captions.items}
        vqa = read_vqa(questions, answers if answers.exists() else None, images, files=files)
        asked, bad = vqa.items, bad + vqa.bad
        answered = answers.exists() or any(item.answers for item in asked)
    changes: list[EditItem] = []
    if edits and (root / EDITS).exists():
        pairs = read_edits(root / EDITS, images)
        own = {item.image for item in captions.items}
        changes = [item for item in pairs.items if split is None or {item.image, item.result} <= own]
        bad += pairs.bad
    told: list[str] = []
    source = Path(text) if text is not None else next((root / name for name in TEXTS if (root / name).exists()), None)
    if texts and source is not None:
        read = read_texts(source)
        told, bad = read.items, bad + read.bad
    return CaptionedFolder(root, captions.items, asked, answered, changes, told, bad)


def usual_answer(answers: Sequence[str]) -> str:
    """What most people answered, the first of those equal; "" where nobody said anything."""
    said = Counter(text for answer in answers if (text := answer.strip()))
    return said.most_common(1)[0][0] if said else ""


def captioned_sources(
    folder: CaptionedFolder, images: Mapping[Path, int], sequencing: Sequencing, room: int | None = None
) -> dict[str, Source]:
    """All kinds of samples of a folder, by name: a caption and a request for each caption of an image, the questions
    with their usual answer (`AskedSource`) and the edits (*derived*: the paper trains on neither), each captioned image
    alone, the texts. A kind that the folder has not is empty.

    images: the number of each image file; what is about another one is left out. room: of `AskedSource`.
    """
    seen = [item for item in folder.captions if item.image in images]
    told = [(images[item.image], text, "") for item in seen for text in item.captions]
    asked = [
        (images[item.image], item.question, answer)
        for item in folder.questions
        if item.image in images and (answer := usual_answer(item.answers))
    ]
    entries = {"caption": told, "image": told, "text": [(0, text, "") for text in folder.texts]}
    entries["unprompted"] = [(image, "", "") for image in dict.fromkeys(image for image, _, _ in told)]
    changes = [
        (images[item.image], item.text, images[item.result])
        for item in folder.edits
        if item.image in images and item.result in images
    ]
    sources: dict[str, Source] = {
        kind: ListedSource(kind, entries[kind], sequencing) if kind in entries else AskedSource(asked, sequencing, room)
        for kind in KINDS
    }
    return {**sources, EDIT: ListedSource(EDIT, changes, sequencing)}
