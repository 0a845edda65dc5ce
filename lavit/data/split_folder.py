"""A data folder as two, one to train on and one held out: images with captions, questions, answers, edits and texts, or
images alone. What is not understood of an annotation file (fields, lists beside the known ones) stays in both."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lavit.data.annotation_entries import (
    AnnotationError,
    Unusable,
    decoded,
    identity,
    image_file,
    load,
    load_any,
    parse,
    text_of,
)
from lavit.data.annotations import read_vqa
from lavit.data.atomic_write import atomic_write
from lavit.data.image_folder import image_names
from lavit.data.split import IMAGES, is_held_out, name_of

TRAIN, HELD_OUT = "train", "held-out"
Link = Literal["hard", "symbolic", "copy"]

Side = str
"""`TRAIN` or `HELD_OUT`."""


@dataclass
class Parts:
    """counts: how many of what ("images", "captions", "questions", "edits", "texts") are on a side. lost: edits between
    images of both sides. bad: (name, reason) of entries that cannot be used, which are on neither."""

    counts: dict[Side, Counter[str]] = field(default_factory=lambda: {TRAIN: Counter(), HELD_OUT: Counter()})
    lost: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)


def split_folder(
    root: Path, output: Path, *, share: float, seed: int = 0, splits: frozenset[str] | None = None, link: Link = "hard"
) -> Parts:
    """Makes output/train and output/held-out of a folder; `output` appears when both are whole.

    share, seed: as in `lavit.data.split`; the images that training with ``validation_share`` holds out (seed 0).
    splits: of a folder whose captions.json is Karpathy's, the splits that are held out, instead of a share.
    link: how the image files get there. Hard links need the same file system.
    Raises AnnotationError for Karpathy's captions without splits, and the other way round; FileExistsError for an
    output that is there; ValueError for one inside the folder, or where a side would have no image.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output: {output} is there already")
    if output.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"output: expected a folder outside {root}, or its images would be there twice, got {output}")
    work = _Split(root, share, seed, splits)
    for side in (TRAIN, HELD_OUT):
        if not work.parts.counts[side]["images"]:
            raise ValueError(f"share: of {len(work.sides)} images none would be in {side}")
    target = output.resolve()  # which has a name, where "." has none
    hidden = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        for side in (TRAIN, HELD_OUT):
            work.write(side, hidden / side, link)
        if target.exists():  # an empty folder, in which somebody may be working
            for side in (TRAIN, HELD_OUT):
                os.replace(hidden / side, target / side)
            hidden.rmdir()
        else:
            os.replace(hidden, target)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return work.parts


class _Split:
    """sides: the side of each image file, by its path below the root."""

    def __init__(self, root: Path, share: float, seed: int, splits: frozenset[str] | None) -> None:
        self.root, self.parts = root, Parts()
        captions = root / "captions.json"
        self.captions = load(captions) if captions.exists() else None
        listed = self.captions.get("images") if self.captions else None
        karpathy = isinstance(listed, list) and any("sentences" in e for e in listed if isinstance(e, dict))
        if karpathy and splits is None:
            raise AnnotationError(
                f"{captions} is Karpathy's and has splits of its own: expected --held-out val,test (say) instead of "
                "--share; or train with --split train, which needs no folders"
            )
        if splits is not None and not karpathy:
            raise AnnotationError(f"held_out: expected captions.json to be Karpathy's, with splits, in {root}")
        self.karpathy = karpathy
        below = root / IMAGES if self.captions is not None else root
        prefix = f"{IMAGES}/" if self.captions is not None else ""
        self.images = below
        self.sides = {
            prefix + name: HELD_OUT if is_held_out(name_of(root / (prefix + name), root), share, seed) else TRAIN
            for name in image_names(below)
        }
        self.share, self.seed = share, seed
        if karpathy:
            self._by_entry(splits or frozenset())
        for side in self.sides.values():
            self.parts.counts[side]["images"] += 1
        self.files: dict[str, dict[Side, Callable[[Path], None]]] = {}
        if self.captions is not None:
            self._captions(captions.name)
            self._questions()
            self._edits()
            self._texts()

    def side_of(self, *names: Any) -> Side:
        """The side of an image file, by its possible names below the images. Raises Unusable where there is none, or
        where Karpathy's file gives it no split."""
        path = image_file(self.images, [name for name in names if isinstance(name, str)] or ["?"])
        own = path.relative_to(self.root).as_posix()
        if own not in self.sides and self.karpathy:
            raise Unusable(f'is about {own}, which has no "split" in captions.json')
        if own not in self.sides:  # a file of another ending
            held = is_held_out(name_of(path, self.root), self.share, self.seed)
            self.sides[own] = HELD_OUT if held else TRAIN
            self.parts.counts[self.sides[own]]["images"] += 1
        return self.sides[own]

    def _by_entry(self, splits: frozenset[str]) -> None:
        """Sides as Karpathy's file has them; images that it does not name are on neither."""
        assert self.captions is not None
        told: dict[str, Side] = {}
        known = set()
        for entry in self.captions["images"]:
            try:
                split = text_of(entry, "split")
                known.add(split)
                path = image_file(self.images, _karpathy_names(entry))
                told[path.relative_to(self.root).as_posix()] = HELD_OUT if split in splits else TRAIN
            except Unusable:
                continue  # named with its caption
        if missing := splits - known:
            raise AnnotationError(f"held_out: there is no split {', '.join(missing)} (there are {', '.join(known)})")
        self.sides = told

    # ------------------------------------------------------------------------------------- what each file becomes

    def _captions(self, name: str) -> None:
        assert self.captions is not None
        sides: dict[Any, Side] = {}
        images: dict[Side, list[Any]] = {TRAIN: [], HELD_OUT: []}
        for place, entry in enumerate(_listed(self.captions, "images")):
            with _Named(self.parts, f"{name}: images[{place}]"):
                if self.karpathy:
                    text_of(entry, "split")  # without one it is on neither side
                names = _karpathy_names(entry) if self.karpathy else [text_of(entry, "file_name")]
                side = self.side_of(*names)
                images[side].append(entry)
                sides[_key(entry.get("id"))] = side
                self.parts.counts[side]["captions"] += len(entry.get("sentences") or ())
        self.ids = {
            entry["id"]: self.images / entry["file_name"]
            for side in images
            for entry in images[side]
            if not self.karpathy and isinstance(entry.get("id"), int | str)
        }
        texts: dict[Side, list[Any]] = {TRAIN: [], HELD_OUT: []}
        for place, entry in enumerate(_listed(self.captions, "annotations")):
            with _Named(self.parts, f"{name}: annotations[{place}]"):
                key = _key(entry.get("image_id") if isinstance(entry, dict) else None)
                if key not in sides:
                    raise Unusable("is about no image of this file that is there")
                texts[sides[key]].append(entry)
                self.parts.counts[sides[key]]["captions"] += 1
        lists = {"images": images} | ({"annotations": texts} if "annotations" in self.captions else {})
        self.files[name] = {side: _json(self.captions, {k: v[side] for k, v in lists.items()}) for side in images}

    def _questions(self) -> None:
        path, answers = self.root / "questions.json", self.root / "answers.json"
        if not path.exists():
            return
        content = load_any(path)
        if isinstance(content, list):  # VizWiz's, with the answers in it
            kept: dict[Side, list[Any]] = {TRAIN: [], HELD_OUT: []}
            for place, entry in enumerate(content):
                with _Named(self.parts, f"{path.name}: entries[{place}]"):
                    side = self.side_of(text_of(entry, "image"))
                    kept[side].append(entry)
                    self.parts.counts[side]["questions"] += 1
            self.files[path.name] = {side: _json(None, kept[side]) for side in kept}
            return
        read = read_vqa(path, None, self.images, files=self.ids)
        self.parts.bad += read.bad
        images = {item.question_id: item.image.relative_to(self.images).as_posix() for item in read.items}
        sides: dict[Any, Side] = {}
        kept = {TRAIN: [], HELD_OUT: []}
        for place, entry in enumerate(_listed(content, "questions")):
            named = entry.get("question_id") is not None
            key = _key(entry.get("question_id")) if named else place  # as `read_vqa` has it
            if key not in images or key in sides:
                continue  # named above
            with _Named(self.parts, f"{path.name}: questions[{place}]"):
                if answers.exists():
                    identity(entry, "question_id")  # the answers go by it
                sides[key] = self.side_of(images[key])
                kept[sides[key]].append(entry)
                self.parts.counts[sides[key]]["questions"] += 1
        self.files[path.name] = {side: _json(content, {"questions": kept[side]}) for side in kept}
        if answers.exists():
            content = load(answers)
            told: dict[Side, list[Any]] = {TRAIN: [], HELD_OUT: []}
            for entry in _listed(content, "annotations"):
                if (key := _key(entry.get("question_id"))) in sides:
                    told[sides[key]].append(entry)
            self.files[answers.name] = {side: _json(content, {"annotations": told[side]}) for side in told}

    def _edits(self) -> None:
        path = self.root / "edits.jsonl"
        if not path.exists():
            return
        kept: dict[Side, list[str]] = {TRAIN: [], HELD_OUT: []}
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            with _Named(self.parts, f"{path.name}: line {number}"):
                if not (words := decoded(line).strip()):
                    continue
                entry = parse(words, "column {0.colno}")
                before, after = (self.side_of(text_of(entry, key)) for key in ("image", "result"))
                if before != after:
                    self.parts.lost += 1
                    continue
                kept[before].append(words + "\n")
                self.parts.counts[before]["edits"] += 1
        self.files[path.name] = {side: _text("".join(kept[side])) for side in kept}

    def _texts(self) -> None:
        for name in ("text.jsonl", "text.txt"):
            path = self.root / name
            if path.exists():
                content = path.read_bytes()
                self.parts.counts[TRAIN]["texts"] += sum(bool(line.strip()) for line in content.splitlines())
                self.files[name] = {TRAIN: _text(content)}

    # ------------------------------------------------------------------------------------------------- to the disk

    def write(self, side: Side, folder: Path, link: Link) -> None:
        for name, own in self.sides.items():
            if own != side:
                continue
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            place(self.root / name, target, link)
        for name, of_side in self.files.items():
            if side in of_side:
                of_side[side](folder / name)


def place(source: Path, target: Path, link: Link) -> None:
    """An image file at another place. OSError says what else there is where a hard link cannot be."""
    real = os.path.realpath(source)
    if link == "copy":
        shutil.copy2(real, target)
    elif link == "symbolic":
        os.symlink(real, target)
    else:
        try:
            os.link(real, target)
        except OSError as error:
            raise OSError(
                f"link: {target} cannot be a hard link to {source} ({error.strerror}); say --link symbolic or copy"
            ) from None


class _Named:
    """Keeps the name and the reason of an entry that cannot be used."""

    def __init__(self, parts: Parts, name: str) -> None:
        self.parts, self.name = parts, name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if isinstance(error, Unusable):
            self.parts.bad.append((self.name, str(error)))
        return isinstance(error, Unusable)


def _listed(content: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """What is no object has no fields: whoever asks for one says so."""
    listed = content.get(key)
    for entry in listed if isinstance(listed, list) else ():
        yield entry if isinstance(entry, dict) else {}


def _key(value: Any) -> Any:
    """An id as a key; nothing for what can be none."""
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _karpathy_names(entry: Any) -> list[str]:
    name, below = text_of(entry, "filename"), entry.get("filepath")
    return [f"{below}/{name}", name] if isinstance(below, str) and below else [name]


def _json(whole: dict[str, Any] | None, kept: Any) -> Callable[[Path], None]:
    """Writes a JSON file: the whole with some of its lists changed, or a list alone."""
    content = kept if whole is None else whole | kept
    return _text(json.dumps(content, ensure_ascii=False))


def _text(content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(data)

    return write
