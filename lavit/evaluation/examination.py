"""A model and the pictures of a folder: everything that the one can do with the other, item by item."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from lavit.data.annotations import EditItem, read_edits
from lavit.data.captioned_folder import EDITS
from lavit.evaluation.data_folder import DataFolder, read_data
from lavit.evaluation.folder_pictures import Asked, FolderDrawn, Rebuilt, draw_asked, rebuild_files
from lavit.evaluation.folder_sample import draw_sample
from lavit.evaluation.folder_tokens import FolderTokens, see_files
from lavit.evaluation.folder_words import FolderAnswers, FolderCaptions, give_answers, say_captions
from lavit.evaluation.reconstruction import Draw
from lavit.evaluation.runner import Skipped
from lavit.evaluation.tasks import Model

Progress = Callable[[int, int], None]
T = TypeVar("T")

CAPTIONS, ANSWERS, REBUILT, DRAWN, CHANGED = "captions", "answers", "rebuilt", "drawn", "changed"
NO_LANGUAGE = "this model is a tokenizer, which writes no text and draws nothing that it is asked for"
NO_PIXELS = "this model has nothing that draws pixels"


@dataclass(frozen=True)
class Parts:
    """What a model is made of. language, processor: a `lavit.LaVIT` and its processor, None of a tokenizer alone.
    draw: pixels of tokens, None where nothing draws them."""

    tokenizer: Any
    image_processor: Any
    language: Model | None = None
    processor: Any = None
    draw: Draw | None = None


@dataclass(frozen=True)
class Folder:
    """data: the pictures with their captions and questions. edits: what asks for changes of them. pictures: all files.
    bad: (name, reason) of what cannot be used."""

    root: Path
    data: DataFolder
    edits: list[EditItem]
    pictures: list[Path]
    bad: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Examination:
    """What came out; a part that is None is named in ``missing``, with a sentence without its end that says why.

    pictures: how many files there are, of which ``tokens`` has a sample. skipped: what could not be used. view: what
    the model sees of a picture, in its own pixels.
    """

    root: Path
    pictures: int
    tokens: FolderTokens
    captions: FolderCaptions | None = None
    answers: FolderAnswers | None = None
    rebuilt: list[Rebuilt] | None = None
    drawn: FolderDrawn | None = None
    changed: FolderDrawn | None = None
    missing: dict[str, str] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    view: Callable[[Image.Image], Image.Image] = lambda picture: picture


def read_pictures(root: str | os.PathLike[str]) -> Folder:
    """A folder of captioned or of bare pictures. Raises as `read_data` and `ImageFolder` do."""
    data = read_data(root)
    path = Path(root) / EDITS
    edits = read_edits(path, data.images) if path.is_file() else None
    bad = [*data.bad, *(edits.bad if edits else ())]
    return Folder(Path(root), data, edits.items if edits else [], data.pictures(), bad)


def examine(
    parts: Parts,
    folder: Folder,
    pictures: Path,
    *,
    limit: int | None = None,
    drawn: int = 24,
    seed: int = 0,
    batch_size: int = 16,
    progress: Callable[[str], Progress] | None = None,
    texts: dict[str, Any] | None = None,
    drawing: dict[str, Any] | None = None,
) -> Examination:
    """Everything that the model can do with a sample of the folder.

    pictures: an existing folder for what is drawn. limit: at most so many pictures, and questions about them; None:
    all. drawn: at most so many are drawn of each kind. progress: what is told how far a part is, by its name.
    texts, drawing: settings of ``LaVIT.caption`` and ``answer``, and of ``generate_tokens``.
    Raises ValueError where not a single picture could be read.
    """
    files = draw_sample(folder.pictures, limit, seed)

    def shared(name: str) -> dict[str, Any]:
        return {"batch_size": batch_size, "progress": progress(name) if progress else None}

    tokens = see_files(parts.tokenizer, parts.image_processor, files, **shared("tokens"))
    found = Examination(folder.root, len(folder.pictures), tokens, view=parts.image_processor.seen)
    found.skipped += [*folder.bad, *_named(tokens.skipped)]
    sample = [one.path for one in tokens.seen]
    readable = set(sample)
    captioned = [item for item in folder.data.captions if item.captions and item.image in readable]
    asked = [item for item in folder.data.questions if item.answers and item.image in readable]
    asked = draw_sample(asked, limit, seed)
    changes = draw_sample(folder.edits, drawn, seed)
    found.missing = _missing(parts, folder.root, bool(captioned), bool(asked), bool(changes))

    def part(name: str, run: Callable[[], T]) -> T | None:
        """What comes out, or None with the reason in ``missing``."""
        if name in found.missing:
            return None
        try:
            return run()
        except ValueError as error:
            found.missing[name] = " ".join(str(error).split())
            return None

    # Of what is None below, ``missing`` says so.
    language: Any = parts.language
    paint: Any = parts.draw

    def rebuild() -> list[Rebuilt]:
        place, own = _below(pictures, REBUILT), {"seed": seed, **shared("rebuilt pictures")}
        some = draw_sample(sample, drawn, seed)
        rebuilt, lost = rebuild_files(parts.tokenizer, parts.image_processor, paint, some, place, **own)
        found.skipped += _named(lost)
        return rebuilt

    def draw(name: str, prompts: list[Asked]) -> FolderDrawn:
        own = {**shared(f"{name} pictures"), "seed": seed, **(drawing or {})}
        return draw_asked(language, parts.processor, prompts, sample, paint, _below(pictures, name), **own)

    prompts = [Asked(item.captions[0].strip(), item.image) for item in draw_sample(captioned, drawn, seed)]
    words = [Asked(item.text, item.result, item.image) for item in changes]
    said = {**shared(CAPTIONS), **(texts or {})}
    found.captions = part(CAPTIONS, lambda: say_captions(language, parts.processor, captioned, **said))
    said = {**shared(ANSWERS), "answerable_first": folder.data.vizwiz, **(texts or {})}
    found.answers = part(ANSWERS, lambda: give_answers(language, parts.processor, asked, **said))
    found.rebuilt = part(REBUILT, rebuild)
    found.drawn = part(DRAWN, lambda: draw(DRAWN, prompts))
    found.changed = part(CHANGED, lambda: draw(CHANGED, words))
    for done in (found.captions, found.answers, found.drawn, found.changed):
        found.skipped += _named(done.skipped) if done is not None else []
    return found


def _missing(parts: Parts, root: Path, captioned: bool, asked: bool, changes: bool) -> dict[str, str]:
    """What cannot be had of this model and folder, and why."""
    missing: dict[str, str] = {}
    if not captioned:
        missing |= dict.fromkeys((CAPTIONS, DRAWN), f"{root} has no captions that can be used")
    if not asked:
        missing[ANSWERS] = f"{root} has no questions with answers that can be used"
    if not changes:
        missing[CHANGED] = f"{root} has no {EDITS} with changes to ask for"
    if parts.language is None:
        missing |= dict.fromkeys((CAPTIONS, ANSWERS, DRAWN, CHANGED), NO_LANGUAGE)
    elif parts.language.config.image_objective != "classify":
        missing |= dict.fromkeys((DRAWN, CHANGED), "the model regresses embeddings, it has no image tokens to draw")
    if parts.draw is None:
        missing[REBUILT] = NO_PIXELS
    return missing


def _below(folder: Path, name: str) -> Path:
    place = folder / name
    place.mkdir(exist_ok=True)
    return place


def _named(skipped: list[Skipped]) -> list[tuple[str, str]]:
    return [(item.name, item.reason) for item in skipped]
