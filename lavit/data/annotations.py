"""Captions of image files, questions about them, edits of them, and texts: COCO, Karpathy's split, VQAv2, JSON lines.

A file that cannot be used at all raises ``AnnotationError``. A single entry that cannot be used, an image that is not
there, or an answer to no question, is left out and named with the reason; the rest goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

Id = int | str
T = TypeVar("T")

PEOPLE = 10
"""So many answers has a question of VQAv2."""


class AnnotationError(ValueError):
    """An annotation file that cannot be used; the message names it and the reason."""


@dataclass(frozen=True)
class CaptionItem:
    """An image file and what people wrote about it."""

    image_id: Id
    image: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class VQAItem:
    """A question about an image file. ``answers``: what each of ten people answered; none where no annotations are
    given, and then the types are empty as well."""

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
    """What was read. ``bad``: (name, reason) of each entry left out, in the order of the files."""

    items: list[T]
    bad: list[tuple[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {"items": len(self.items), "bad": [list(pair) for pair in self.bad]}


class _Bad(Exception):
    """The reason why one entry is left out."""


def read_captions(
    path: str | os.PathLike[str], images: str | os.PathLike[str], *, split: str | None = None
) -> Annotations[CaptionItem]:
    """Images with their captions, in the order of the file.

    path: COCO's ``{"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}``, or Karpathy's
        ``{"images": [{"cocoid", "filename", "filepath", "split", "sentences": [{"raw"}]}]}``.
    images: the folder that the file names are relative to.
    split: of Karpathy's file "train", "restval", "val" or "test" (None: all); COCO's files have none.
    Raises AnnotationError.
    """
    path, folder = Path(path), _folder(images)
    content = _load(path)
    if "annotations" not in content:
        return _karpathy(path, content, folder, split)
    if split is not None:
        raise AnnotationError(f"split: {path} is in COCO's format, which has no splits (asked for {split!r})")
    bad: list[tuple[str, str]] = []
    files: dict[Id, Path] = {}
    known: set[Id] = set()
    for label, entry in _entries(path, content, "images"):
        try:
            key = _id(entry, "id")
            label = f"{path.name}: image {key}"
            if key in known:
                raise _Bad("is there twice; the first is taken")
            known.add(key)
            files[key] = _image(folder, [_text(entry, "file_name")])
        except _Bad as reason:
            bad.append((label, str(reason)))
    captions: dict[Id, list[str]] = {key: [] for key in files}
    for label, entry in _entries(path, content, "annotations"):
        try:
            if "id" in entry:
                label = f"{path.name}: annotation {entry['id']}"
            key = _id(entry, "image_id")
            if key not in known:
                raise _Bad(f"image_id {key} is not among the images")
            text = _text(entry, "caption")
            if key in files:  # else the image itself is named
                captions[key].append(text)
        except _Bad as reason:
            bad.append((label, str(reason)))
    bad += [(f"{path.name}: image {key}", "has no caption") for key in files if not captions[key]]
    return Annotations([CaptionItem(key, files[key], tuple(captions[key])) for key in files if captions[key]], bad)


def _karpathy(path: Path, content: dict[str, Any], folder: Path, split: str | None) -> Annotations[CaptionItem]:
    bad: list[tuple[str, str]] = []
    items: dict[Id, CaptionItem] = {}
    splits = set()
    for label, entry in _entries(path, content, "images"):
        try:
            key = _id(entry, "cocoid" if "cocoid" in entry else "imgid")
            label = f"{path.name}: image {key}"
            own = _text(entry, "split")
            splits.add(own)
            if split is not None and own != split:
                continue
            if key in items:
                raise _Bad("is there twice; the first is taken")
            name, sentences = _text(entry, "filename"), entry.get("sentences")
            if not isinstance(sentences, list) or not sentences:
                raise _Bad("has no caption")
            captions = tuple(_text(sentence, "raw") for sentence in sentences)
            below = entry.get("filepath")
            image = _image(folder, [f"{below}/{name}", name] if isinstance(below, str) and below else [name])
            items[key] = CaptionItem(key, image, captions)
        except _Bad as reason:
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

    questions: ``{"questions": [{"question_id", "image_id", "question"}], "data_subtype": "val2014"}``.
    annotations: ``{"annotations": [{"question_id", "image_id", "question_type", "answer_type", "answers": [ten of
        {"answer"}]}]}``, or None where the answers are not known.
    images: the folder of the image files.
    pattern: the file's name below it, such as "{image_id}.png". None: "COCO_val2014_000000000042.jpg", where
        "data_subtype" says val2014, or else "000000000042.jpg".
    files: image files by id, where they are known; the others are looked for.
    Raises AnnotationError.
    """
    path, folder = Path(questions), _folder(images)
    content = _load(path)
    patterns = _patterns(content, pattern)
    bad: list[tuple[str, str]] = []
    truth = None if annotations is None else _answers(Path(annotations), bad)
    items: dict[Id, VQAItem] = {}
    found: dict[Id, Path | _Bad] = dict(files or {})
    seen: set[Id] = set()
    for label, entry in _entries(path, content, "questions"):
        try:
            key = _id(entry, "question_id")
            label = f"{path.name}: question {key}"
            if key in seen:
                raise _Bad("question_id is there twice; the first is taken")
            seen.add(key)
            image_id, text = _id(entry, "image_id"), _text(entry, "question")
            if image_id not in found:  # a dozen questions share an image; its file is looked for once
                found[image_id] = _find(folder, patterns, image_id)
            image = found[image_id]
            if isinstance(image, _Bad):
                raise image
            item = VQAItem(key, image_id, image, text)
            if truth is not None:
                item = _with_answers(item, truth)
            items[key] = item
        except _Bad as reason:
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
    folder = _folder(images)

    def edit(line: str) -> EditItem:
        entry = _json(line, "column {0.colno}")
        before, after = (_image(folder, [_text(entry, key)]) for key in ("image", "result"))
        return EditItem(before, _text(entry, "text"), after)

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
        entry = _json(line, "column {0.colno}") if path.suffix == ".jsonl" else line
        entry = {"text": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
            raise _Bad('expected a text or an object with a text "text"')
        return _text(entry, "text")

    read = _lines("text", path, text)
    if not read.items:
        raise AnnotationError(f"text: there is no text in {path} ({len(read.bad)} lines cannot be used)")
    return read


def _lines(argument: str, path: Path, item: Callable[[str], T]) -> Annotations[T]:
    """What ``item`` makes of each line of a file but the empty ones. argument: whose file it is, for the message."""
    read: Annotations[T] = Annotations([])
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    if words := _decoded(line).strip():
                        read.items.append(item(words))
                except _Bad as reason:
                    read.bad.append((f"{path.name}: line {number}", str(reason)))
    except OSError as error:
        raise AnnotationError(f"{argument}: cannot read {path}: {error.strerror or error}") from None
    return read


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Bad(f"is not UTF-8 text (byte {error.start})") from None


def _json(text: str, place: str = "line {0.lineno} column {0.colno}") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _Bad(f"is not JSON ({error.msg}, {place.format(error)})") from None
    except RecursionError:
        raise _Bad("is not JSON that can be read (nested too deeply)") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise _Bad(f"is not JSON that can be read ({error})") from None


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


def _find(folder: Path, patterns: list[str], image_id: Id) -> Path | _Bad:
    try:
        return _image(folder, [pattern.format(image_id=image_id) for pattern in patterns])
    except _Bad as reason:
        return reason
    except ValueError:
        return _Bad(f"image_id {image_id!r} does not fit the file names {patterns[0]}")


def _answers(path: Path, bad: list[tuple[str, str]]) -> dict[Id, dict[str, Any]]:
    """The entries of the annotations by question."""
    truth: dict[Id, dict[str, Any]] = {}
    for label, entry in _entries(path, _load(path), "annotations"):
        try:
            key = _id(entry, "question_id")
            if key in truth:
                label = f"{path.name}: annotation {key}"
                raise _Bad("question_id is there twice; the first is taken")
            truth[key] = entry
        except _Bad as reason:
            bad.append((label, str(reason)))
    return truth


def _with_answers(item: VQAItem, truth: dict[Id, dict[str, Any]]) -> VQAItem:
    entry = truth.get(item.question_id)
    if entry is None:
        raise _Bad("has no annotation")
    if _id(entry, "image_id") != item.image_id:
        raise _Bad(f"is about image {item.image_id}, its annotation about image {entry['image_id']}")
    answers = entry.get("answers")
    if not isinstance(answers, list) or len(answers) != PEOPLE:
        count = len(answers) if isinstance(answers, list) else "none"
        raise _Bad(f"expected {PEOPLE} answers, got {count}")
    texts = tuple(_text(answer, "answer", empty=True) for answer in answers)
    types = _text(entry, "question_type"), _text(entry, "answer_type")
    return VQAItem(item.question_id, item.image_id, item.image, item.question, texts, *types)


def _folder(path: str | os.PathLike[str]) -> Path:
    if not Path(path).is_dir():
        raise AnnotationError(f"images: there is no folder {os.fspath(path)}")
    return Path(path)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = _json(_decoded(path.read_bytes()))
    except OSError as error:
        raise AnnotationError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except _Bad as reason:
        raise AnnotationError(f"{path}: {reason}") from None
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: expected a JSON object, got {_kind(content)}")
    return content


def _entries(path: Path, content: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of the entry, the entry) of a list of objects."""
    entries = content.get(key)
    if not isinstance(entries, list):
        what = "none" if key not in content else _kind(entries)
        raise AnnotationError(f'{path}: expected a list "{key}", got {what}')
    for number, entry in enumerate(entries):
        # What is no object has no fields: whoever asks for one says so.
        yield f"{path.name}: {key}[{number}]", entry if isinstance(entry, dict) else {}


def _id(entry: dict[str, Any], key: str) -> Id:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _Bad(f'expected a whole number or a text "{key}", got {_kind(value)}')
    return value


def _text(entry: Any, key: str, *, empty: bool = False) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise _Bad(f'expected a text "{key}", got {_kind(value)}')
    if not empty and not value.strip():
        raise _Bad(f'"{key}" is empty')
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        raise _Bad(f'"{key}" is not text that UTF-8 can hold') from None
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "none"}
    return names.get(type(value), json.dumps(value))


def _image(folder: Path, names: list[str]) -> Path:
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise _Bad(f"{name} leads out of the image folder")
        try:
            if (folder / name).is_file():
                return folder / name
        except (OSError, ValueError):  # too long, or a NUL in it
            raise _Bad(f"{name[:80]!r} is no file name") from None
    raise _Bad(f"there is no image file {folder / names[0]}")
