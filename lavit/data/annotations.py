"""Captions of image files, questions about them, edits of them, and texts, in the formats that the data sets publish:
COCO and NoCaps, Karpathy's split, Flickr30k; VQAv2 and OK-VQA, VizWiz; JSON lines.

A file that cannot be used at all raises ``AnnotationError``. A single entry that cannot be used, an image that is not
there, or an answer to no question, is left out and named with the reason; the rest goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from lavit.data.annotation_entries import AnnotationError as AnnotationError
from lavit.data.annotation_entries import (
    Id,
    Unusable,
    an_object,
    decoded,
    entries,
    first_and_reasons,
    identity,
    image_file,
    image_folder,
    kind_of,
    load,
    load_any,
    optional_text,
    parse,
    text_of,
)

T = TypeVar("T")


@dataclass(frozen=True)
class CaptionItem:
    """An image file and what people wrote about it. ``group``: the domain that NoCaps puts it in, else empty."""

    image_id: Id
    image: Path
    captions: tuple[str, ...]
    group: str = ""


@dataclass(frozen=True)
class VQAItem:
    """A question about an image file. ``answers``: what each of the people answered, ten in VQAv2; none where no
    annotations are given. The types are empty where they are not told."""

    question_id: Id
    image_id: Id
    image: Path
    question: str
    answers: tuple[str, ...] = ()
    question_type: str = ""
    answer_type: str = ""


@dataclass(frozen=True)
class EditItem:
    """An image file, the words that ask for a change of it, and the file that shows what they ask for."""

    image: Path
    text: str
    result: Path


@dataclass(frozen=True)
class Annotations(Generic[T]):
    """What was read. ``bad``: (name, reason) of each entry left out, in the order of the files. ``vizwiz``: whether
    the questions are VizWiz's, of which some cannot be answered."""

    items: list[T]
    bad: list[tuple[str, str]] = field(default_factory=list)
    vizwiz: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {"items": len(self.items), "bad": [list(pair) for pair in self.bad]}


def read_captions(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    split: str | None = None,
    captionless: bool = False,
) -> Annotations[CaptionItem]:
    """Images with their captions, in the order of the file.

    path: COCO's and NoCaps's ``{"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}``;
        Karpathy's ``{"images": [{"cocoid", "filename", "filepath", "split", "sentences": [{"raw"}]}]}``; or Flickr30k's
        own table: .token, "36979.jpg#0", a tab and the caption a line, or .csv, "36979.jpg| 0| caption". An annotation
        needs no "id"; Karpathy's image no "cocoid" (it is known by its "imgid", or else by its name), no "filepath",
        and no "split" where all are taken.
    images: the folder that the file names are relative to.
    split: of Karpathy's file "train", "restval", "val" or "test" (None: all); the others have none.
    captionless: images of a COCO file without any captions, as of a test set, are items too.
    Raises AnnotationError.
    """
    path, folder = Path(path), image_folder(images)
    if path.suffix in (".token", ".csv"):
        if split is not None:
            raise AnnotationError(f"split: {path} is Flickr30k's table, which has no splits (asked for {split!r})")
        return _flickr(path, folder)
    content = load(path)
    listed = content.get("images")
    bare = captionless and isinstance(listed, list) and not any("sentences" in e for e in listed if isinstance(e, dict))
    if "annotations" not in content and not bare:
        return _karpathy(path, content, folder, split)
    if split is not None:
        raise AnnotationError(f"split: {path} is in COCO's format, which has no splits (asked for {split!r})")
    return _coco(path, content, folder, "annotations" not in content)


def _coco(path: Path, content: dict[str, Any], folder: Path, bare: bool) -> Annotations[CaptionItem]:
    bad: list[tuple[str, str]] = []
    files: dict[Id, Path] = {}
    groups: dict[Id, str] = {}
    known: set[Id] = set()
    for label, entry in entries(path, content, "images"):
        try:
            # Where no annotations name the images, a file name is enough.
            key = text_of(entry, "file_name") if bare and entry.get("id") is None else identity(entry, "id")
            label = f"{path.name}: image {key}"
            if key in known:
                raise Unusable("is there twice; the first is taken")
            known.add(key)
            files[key] = image_file(folder, [text_of(entry, "file_name")])
            groups[key] = domain if isinstance(domain := entry.get("domain"), str) else ""
        except Unusable as reason:
            bad.append((label, str(reason)))
    captions: dict[Id, list[str]] = {key: [] for key in files}
    numbers: set[Id] = set()
    for label, entry in () if bare else entries(path, content, "annotations"):
        try:
            if entry.get("id") is not None:
                label = f"{path.name}: annotation {entry['id']}"
                if (number := identity(entry, "id")) in numbers:
                    raise Unusable("is there twice; the first is taken")
                numbers.add(number)
            key = identity(entry, "image_id")
            if key not in known:
                raise Unusable(f"image_id {key} is not among the images")
            text = text_of(entry, "caption")
            if key in files:  # else the image itself is named
                captions[key].append(text)
        except Unusable as reason:
            bad.append((label, str(reason)))
    items = [CaptionItem(key, files[key], tuple(captions[key]), groups[key]) for key in files]
    if not bare:
        bad += [(f"{path.name}: image {item.image_id}", "has no caption") for item in items if not item.captions]
        items = [item for item in items if item.captions]
    return Annotations(items, bad)


def _flickr(path: Path, folder: Path) -> Annotations[CaptionItem]:
    """Captions by file name, which is the image's id, too."""
    captions: dict[str, dict[str, str]] = {}

    def of_token(line: str) -> tuple[str, str, str]:
        name, tab, text = line.partition("\t")
        name, hash_, number = name.rpartition("#")
        if not (tab and hash_ and name and number and text.strip()):
            raise Unusable('expected "NAME#NUMBER", a tab and a caption')
        return name, number.strip(), text.strip()

    def of_csv(line: str) -> tuple[str, str, str]:
        cells = [cell.strip() for cell in line.split("|", 2)]
        if len(cells) != 3 or not cells[0] or not cells[2]:
            raise Unusable('expected "NAME| NUMBER| CAPTION"')
        return cells[0], cells[1], cells[2]

    read = _lines("captions", path, of_csv if path.suffix == ".csv" else of_token)
    bad = read.bad
    for name, number, text in read.items:
        if (name, number) == ("image_name", "comment_number"):
            continue
        own = captions.setdefault(name, {})
        if number in own:
            bad.append((f"{path.name}: {name}#{number}", "is there twice; the first is taken"))
        else:
            own[number] = text
    items = []
    for name, texts in captions.items():
        try:
            items.append(CaptionItem(name, image_file(folder, [name]), tuple(texts.values())))
        except Unusable as reason:
            bad.append((f"{path.name}: image {name}", str(reason)))
    return Annotations(items, bad)


def _karpathy(path: Path, content: dict[str, Any], folder: Path, split: str | None) -> Annotations[CaptionItem]:
    bad: list[tuple[str, str]] = []
    items: dict[Id, CaptionItem] = {}
    splits = set()
    for label, entry in entries(path, content, "images"):
        try:
            numbered = [name for name in ("cocoid", "imgid") if entry.get(name) is not None]
            if not numbered and "sentences" not in entry:
                raise Unusable("has no caption")  # as COCO's, where there are no annotations
            key = identity(entry, numbered[0]) if numbered else text_of(entry, "filename")
            label = f"{path.name}: image {key}"
            own = text_of(entry, "split") if split is not None else optional_text(entry, "split")
            splits.add(own)
            if split is not None and own != split:
                continue
            if key in items:
                raise Unusable("is there twice; the first is taken")
            name, sentences = text_of(entry, "filename"), entry.get("sentences")
            if not isinstance(sentences, list) or not sentences:
                raise Unusable("has no caption")
            captions = tuple(text_of(sentence, "raw") for sentence in sentences)
            below = entry.get("filepath")
            image = image_file(folder, [f"{below}/{name}", name] if isinstance(below, str) and below else [name])
            items[key] = CaptionItem(key, image, captions)
        except Unusable as reason:
            bad.append((label, str(reason)))
    if split is not None and split not in splits:
        raise AnnotationError(f"split: expected one of {', '.join(sorted(splits))}, those of {path}, got {split!r}")
    return Annotations(list(items.values()), bad)


def read_vqa(
    questions: str | os.PathLike[str],
    annotations: str | os.PathLike[str] | None,
    images: str | os.PathLike[str],
    *,
    pattern: str | None = None,
    files: Mapping[Id, Path] | None = None,
) -> Annotations[VQAItem]:
    """Questions about images, in the order of their file.

    questions: VQAv2's and OK-VQA's ``{"questions": [{"question_id", "image_id", "question"}], "data_subtype":
        "val2014"}``, without annotations known by their places in the list where they have no "question_id"; or
        VizWiz's ``[{"image": FILE, "question", "answers": [{"answer"}], "answer_type"}]``, which has the answers in it,
        but for a test set; its questions are known by their image.
    annotations: ``{"annotations": [{"question_id", "image_id", "question_type", "answer_type", "answers": [{"answer"},
        ...]}]}``, or None where the answers are not known. There may be any number of answers but none, each a text or
        an object with one, or "multiple_choice_answer" alone. Only these and "question_id" are needed.
    images: the folder of the image files.
    pattern: the file's name below it, such as "{image_id}.png". None: "COCO_val2014_000000000042.jpg", where
        "data_subtype" says val2014, or else "000000000042.jpg".
    files: image files by id, where they are known; the others are looked for.
    Raises AnnotationError.
    """
    path, folder = Path(questions), image_folder(images)
    content = load_any(path)
    if isinstance(content, list):
        if annotations is not None:
            raise AnnotationError(f"{annotations}: {path.name} is VizWiz's, which has the answers in it")
        return _vizwiz(path, content, folder)
    content = an_object(path, content)
    patterns = _patterns(content, pattern)
    bad: list[tuple[str, str]] = []
    truth = None if annotations is None else _answers(Path(annotations), bad)
    items: dict[Id, VQAItem] = {}
    found: dict[Id, Path | Unusable] = dict(files or {})
    seen: set[Id] = set()
    for place, (label, entry) in enumerate(entries(path, content, "questions")):
        try:
            unnamed = truth is None and entry.get("question_id") is None
            key = place if unnamed else identity(entry, "question_id")
            label = f"{path.name}: question {key}"
            if key in seen:
                raise Unusable("question_id is there twice; the first is taken")
            seen.add(key)
            image_id, text = identity(entry, "image_id"), text_of(entry, "question")
            if image_id not in found:  # a dozen questions share an image; its file is looked for once
                found[image_id] = _find(folder, patterns, image_id)
            image = found[image_id]
            if isinstance(image, Unusable):
                raise image
            item = VQAItem(key, image_id, image, text)
            if truth is not None:
                item = _with_answers(item, truth)
            items[key] = item
        except Unusable as reason:
            bad.append((label, str(reason)))
    if truth is not None and annotations is not None:
        name = Path(annotations).name
        bad += [
            (f"{name}: annotation {key}", f"question_id {key} is not among the questions")
            for key in truth
            if key not in seen
        ]
    return Annotations(list(items.values()), bad)


def read_edits(path: str | os.PathLike[str], images: str | os.PathLike[str]) -> Annotations[EditItem]:
    """Edits, in the order of the file: ``{"image": FILE, "text": ..., "result": FILE}`` a line.

    images: the folder that the file names are relative to. Empty lines are passed over. Raises AnnotationError for a
    file that cannot be read.
    """
    folder = image_folder(images)

    def edit(line: str) -> EditItem:
        entry = parse(line, "column {0.colno}")
        before, after = (image_file(folder, [text_of(entry, key)]) for key in ("image", "result"))
        return EditItem(before, text_of(entry, "text"), after)

    return _lines("edits", Path(path), edit)


def read_texts(path: str | os.PathLike[str]) -> Annotations[str]:
    """The texts of a file: of .txt one a line, of .jsonl one a line as ``{"text": ...}`` or as a JSON text.

    Empty lines are passed over; what is no such text is left out and named. Raises AnnotationError for a file that
    cannot be read, of another ending, or without any text.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise AnnotationError(f"text: expected a file that ends in .txt or .jsonl, got {path}")

    def text(line: str) -> str:
        entry = parse(line, "column {0.colno}") if path.suffix == ".jsonl" else line
        entry = {"text": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise Unusable('expected a text or an object with a text "text"')
        return text_of(entry, "text")

    read = _lines("text", path, text)
    if not read.items:
        why = f" ({len(read.bad)} lines cannot be used: {first_and_reasons(read.bad)})" if read.bad else ""
        raise AnnotationError(f"text: there is no text in {path}{why}")
    return read


def _lines(argument: str, path: Path, item: Callable[[str], T]) -> Annotations[T]:
    """What ``item`` makes of each line of a file but the empty ones. argument: whose file it is, for the message."""
    read: Annotations[T] = Annotations([])
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    if words := decoded(line).strip():
                        read.items.append(item(words))
                except Unusable as reason:
                    read.bad.append((f"{path.name}: line {number}", str(reason)))
    except OSError as error:
        raise AnnotationError(f"{argument}: cannot read {path}: {error.strerror or error}") from None
    return read


def _patterns(content: dict[str, Any], pattern: str | None) -> list[str]:
    if pattern is not None:
        try:
            if pattern.format(image_id=1) == pattern.format(image_id=2):
                raise ValueError("it has no {image_id}")
        except (ValueError, LookupError, AttributeError) as error:
            raise AnnotationError(
                f"pattern: expected a name with {{image_id}}, such as {{image_id}}.jpg, got {pattern!r} ({error})"
            ) from None
        return [pattern]
    names = ["{image_id:012d}.jpg"]
    subtype = content.get("data_subtype")
    if isinstance(subtype, str) and subtype:
        subtype = subtype.replace("test-dev", "test")  # a part of the questions, about the same images
        names.insert(0, f"COCO_{subtype.replace('{', '{{').replace('}', '}}')}_{{image_id:012d}}.jpg")
    return names


def _find(folder: Path, patterns: list[str], image_id: Id) -> Path | Unusable:
    try:
        return image_file(folder, [pattern.format(image_id=image_id) for pattern in patterns])
    except Unusable as reason:
        return reason
    except ValueError:
        return Unusable(f"image_id {image_id!r} does not fit the file names {patterns[0]}")


def _answers(path: Path, bad: list[tuple[str, str]]) -> dict[Id, dict[str, Any]]:
    """The entries of the annotations by question."""
    truth: dict[Id, dict[str, Any]] = {}
    for label, entry in entries(path, load(path), "annotations"):
        try:
            key = identity(entry, "question_id")
            if key in truth:
                label = f"{path.name}: annotation {key}"
                raise Unusable("question_id is there twice; the first is taken")
            truth[key] = entry
        except Unusable as reason:
            bad.append((label, str(reason)))
    return truth


def _with_answers(item: VQAItem, truth: dict[Id, dict[str, Any]]) -> VQAItem:
    entry = truth.get(item.question_id)
    if entry is None:
        raise Unusable("has no annotation")
    if entry.get("image_id") is not None and identity(entry, "image_id") != item.image_id:
        raise Unusable(f"is about image {item.image_id}, its annotation about image {entry['image_id']}")
    types = optional_text(entry, "question_type"), optional_text(entry, "answer_type")
    return VQAItem(item.question_id, item.image_id, item.image, item.question, _people(entry), *types)


def _people(entry: dict[str, Any]) -> tuple[str, ...]:
    """What each answered; where that is not told, what most did."""
    answers = entry.get("answers")
    if answers is None and "multiple_choice_answer" in entry:
        return (text_of(entry, "multiple_choice_answer"),)
    if not isinstance(answers, list):
        raise Unusable(f'expected a list "answers", got {kind_of(answers)}')
    if not answers:
        raise Unusable('"answers" is empty')
    told = (answer if isinstance(answer, dict) else {"answer": answer} for answer in answers)
    return tuple(text_of(answer, "answer", empty=True) for answer in told)


def _vizwiz(path: Path, content: list[Any], folder: Path) -> Annotations[VQAItem]:
    bad: list[tuple[str, str]] = []
    items: dict[Id, VQAItem] = {}
    for label, entry in entries(path, {"entries": content}, "entries"):
        try:
            name = text_of(entry, "image")
            label = f"{path.name}: {name}"
            if name in items:
                raise Unusable("is there twice; the first is taken")
            item = VQAItem(name, name, image_file(folder, [name]), text_of(entry, "question"))
            if "answers" in entry:
                kind = optional_text(entry, "answer_type")
                item = VQAItem(name, name, item.image, item.question, _people(entry), "", kind)
            items[name] = item
        except Unusable as reason:
            bad.append((label, str(reason)))
    return Annotations(list(items.values()), bad, vizwiz=True)
