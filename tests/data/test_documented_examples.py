"""docs/data.md does not lie: its examples are read whole, and what it calls needed is needed."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavit.data.annotations import AnnotationError
from lavit.data.captioned_folder import CaptionedFolder, read_folder
from lavit.data.split_folder import HELD_OUT, TRAIN, split_folder
from lavit.evaluation.data_folder import CAPTIONS, DataFolder, read_data

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
SECTION = re.compile(r"^##+ (.*)$", re.M)
BLOCK = re.compile(r"^```\w+ (\S+)\n(.*?)^```$", re.M | re.S)
IMAGE = re.compile(r"[\w/]+\.(?:jpg|png)")

Found = tuple[DataFolder, CaptionedFolder | None]


def examples() -> dict[str, dict[str, str]]:
    """The files of each section, by its title."""
    pieces = SECTION.split(PAGE.read_text(encoding="utf-8"))
    found = {title: dict(BLOCK.findall(text)) for title, text in zip(pieces[1::2], pieces[2::2], strict=True)}
    return {title: files for title, files in found.items() if files}


SECTIONS = examples()
FIRST = SECTIONS["Captions as in COCO"]
# captions, captions in all, questions, answers in all, edits, texts: what evaluation reads and, below, training.
COUNTS = {
    "Captions as in COCO": (2, 3, 0, 0, 0, 0),
    "Captions as in COCO, all fields": (1, 1, 0, 0, 0, 0),
    "Images of a test set": (2, 0, 0, 0, 0, 0),
    "Captions in Karpathy's form": (1, 2, 0, 0, 0, 0),
    "Captions in Karpathy's form, all fields": (1, 1, 0, 0, 0, 0),
    "Captions in Flickr30k's tables": (1, 2, 0, 0, 0, 0),
    "Captions in Flickr30k's other table": (1, 2, 0, 0, 0, 0),
    "Questions as in VQAv2": (2, 3, 2, 4, 0, 0),
    "Questions as in VQAv2, all fields": (2, 3, 1, 2, 0, 0),
    "Most frequent answers alone": (2, 3, 1, 1, 0, 0),
    "Questions without answers": (2, 3, 1, 0, 0, 0),
    "Questions as in VizWiz": (2, 3, 1, 2, 0, 0),
    "Edits": (2, 3, 0, 0, 1, 0),
    "Texts": (2, 3, 0, 0, 0, 2),
    "Texts, plain": (2, 3, 0, 0, 0, 2),
}


def load(root: Path, files: dict[str, str]) -> Found:
    """What evaluation and, where there is a captions.json with captions, training read of a folder of these files."""
    for name in {name for text in [*files.values(), *FIRST.values()] for name in IMAGE.findall(text)}:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.new("RGB", (4, 4)).save(path)
    for name, text in files.items():
        (root / name).write_text(text, encoding="utf-8")
    if not files.keys() & set(CAPTIONS):
        (root / "captions.json").write_text(FIRST["captions.json"], encoding="utf-8")
    judged = read_data(root)
    trained = (root / "captions.json").exists() and any(item.captions for item in judged.captions)
    return judged, read_folder(root) if trained else None


def counts(found: Found) -> tuple[int, ...]:
    judged, trained = found
    captions, questions = judged.captions, judged.questions
    told = sum(len(item.captions) for item in captions)
    answers = sum(len(item.answers) for item in questions)
    more = (0, 0) if trained is None else (len(trained.edits), len(trained.texts))
    return len(captions), told, len(questions), answers, *more


def test_every_example_of_the_page_is_known_here():
    assert SECTIONS.keys() == COUNTS.keys()
    assert PAGE.read_text(encoding="utf-8").count("```") == 2 * sum(map(len, SECTIONS.values()))


@pytest.mark.parametrize("title", COUNTS)
def test_an_example_is_read_whole(title, tmp_path):
    judged, trained = found = load(tmp_path, SECTIONS[title])
    assert judged.bad == [] and counts(found) == COUNTS[title]
    if trained is not None:
        assert trained.bad == [] and trained.captions == judged.captions and trained.questions == judged.questions


def listed(root: Path) -> list[str]:
    """Every entry of every annotation file."""
    found = []
    for path in sorted(root.glob("*.json*")):
        content = parsed(path.name, path.read_text(encoding="utf-8"))
        lists = content.values() if isinstance(content, dict) else [content]
        found += [json.dumps([path.name, entry]) for entries in lists if isinstance(entries, list) for entry in entries]
    return sorted(found)


@pytest.mark.parametrize("title", [title for title in COUNTS if "Karpathy" not in title])
def test_a_divided_example_keeps_every_entry(title, tmp_path):
    load(tmp_path / "data", SECTIONS[title])
    for number in range(6):  # so that neither side is without an image
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / "images" / f"{number}.png")
    lost = 0
    for seed in range(4):
        output = tmp_path / str(seed)
        parts = split_folder(tmp_path / "data", output, share=0.4, seed=seed)
        assert parts.bad == []
        divided = listed(output / TRAIN) + listed(output / HELD_OUT)
        whole = listed(tmp_path / "data")
        assert sorted(divided) == whole or (parts.lost and title == "Edits" and len(divided) == len(whole) - 1)
        lost += parts.lost
    assert lost < 4


def paths(content: Any, *before: Any) -> Iterator[tuple[Any, ...]]:
    """Where in it there is a field."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(content, dict):
            yield (*before, key)
        if isinstance(value, dict | list):
            yield from paths(value, *before, key)


def without(content: Any, path: tuple[Any, ...]) -> Any:
    changed = inner = copy.deepcopy(content)
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return changed


def parsed(name: str, text: str) -> Any:
    return [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)


def written(name: str, content: Any) -> str:
    return "\n".join(map(json.dumps, content)) if name.endswith("l") else json.dumps(content)


FIELDS = [
    (title, name, path)
    for title, files in SECTIONS.items()
    if "all fields" not in title
    for name, text in files.items()
    if ".json" in name
    for path in paths(parsed(name, text))
]


OF_TEST_SETS = {("Captions as in COCO", "annotations"), ("Questions as in VizWiz", "answers")}
"""Without these an example is one of another kind."""


@pytest.mark.parametrize("title, name, path", FIELDS)
def test_without_a_field_of_it_an_example_says_less_and_why(title, name, path, tmp_path):
    changed = written(name, without(parsed(name, SECTIONS[title][name]), path))
    try:
        judged, trained = found = load(tmp_path, {**SECTIONS[title], name: changed})
    except AnnotationError as error:
        assert str(path[-1]) in str(error) or name in str(error)
    else:
        bad = judged.bad if trained is None else trained.bad
        assert (title, path[-1]) in OF_TEST_SETS or (bad and all(reason for _, reason in bad))
        assert counts(found) != COUNTS[title]


def test_all_fields_are_what_the_page_says_of_them(tmp_path):
    (asked,) = load(tmp_path / "vqa", SECTIONS["Questions as in VQAv2, all fields"])[0].questions
    assert (asked.question_type, asked.answer_type, asked.answers) == ("what colour", "other", ("red", "dark red"))
    (seen,) = load(tmp_path / "coco", SECTIONS["Captions as in COCO, all fields"])[0].captions
    assert seen.group == "in-domain"
    (shown,) = load(tmp_path / "karpathy", SECTIONS["Captions in Karpathy's form, all fields"])[0].captions
    assert shown.image_id == 1
