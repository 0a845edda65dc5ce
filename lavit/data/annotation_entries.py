"""The entries of annotation files: read, and whatever is wrong with one said in words."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

Id = int | str


class AnnotationError(ValueError):
    """An annotation file that cannot be used; the message names it and the reason."""


class Unusable(Exception):
    """The reason why one entry is left out."""


# What a reason says of its own entry: values in quotes, names of files, ids, and whatever has a digit.
_OF_ONE_ENTRY = re.compile(
    r"(?<=no image file ).*|'[^']*'|(?<=image_id )\S+|(?<=question_id )\S+|(?<=about image )[^\s,]+"
    r"|(?<!\S)(?!UTF-8)\S*[/\\\d][^\s,;:)]*"
)
REASONS = 5


def count_reasons(bad: Sequence[tuple[str, str]]) -> str:
    """How many entries have which reason, the most first: "40 × has no annotation, 2 × there is no image file …".

    bad: (name, reason) of each. Reasons that differ in what they say of their entry alone count as one.
    """
    kinds = Counter(_OF_ONE_ENTRY.sub("…", reason) for _, reason in bad).most_common()
    told = [f"{count} × {kind}" for kind, count in kinds[:REASONS]]
    if rest := kinds[REASONS:]:
        told.append(f"{sum(count for _, count in rest)} × others")
    return ", ".join(told)


def first_and_reasons(bad: Sequence[tuple[str, str]]) -> str:
    """The first of the entries that cannot be used with its reason, and, where there are more, how many have which."""
    name, reason = bad[0]
    return f"{name}: {reason}" + (f"; of all {len(bad)}: {count_reasons(bad)}" if len(bad) > 1 else "")


def decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unusable(f"is not UTF-8 text (byte {error.start})") from None


def parse(text: str, place: str = "line {0.lineno} column {0.colno}") -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Unusable(f"is not JSON ({error.msg}, {place.format(error)})") from None
    except RecursionError:
        raise Unusable("is not JSON that can be read (nested too deeply)") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise Unusable(f"is not JSON that can be read ({error})") from None


def image_folder(path: str | os.PathLike[str]) -> Path:
    if not Path(path).is_dir():
        raise AnnotationError(f"images: there is no folder {os.fspath(path)}")
    return Path(path)


def load(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    return an_object(path, load_any(path))


def an_object(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: expected a JSON object, got {kind_of(content)}")
    return content


def load_any(path: Path) -> Any:
    try:
        return parse(decoded(path.read_bytes()))
    except OSError as error:
        raise AnnotationError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except Unusable as reason:
        raise AnnotationError(f"{path}: {reason}") from None


def entries(path: Path, content: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of the entry, the entry) of a list of objects."""
    listed = content.get(key)
    if not isinstance(listed, list):
        what = "none" if key not in content else kind_of(listed)
        raise AnnotationError(f'{path}: expected a list "{key}", got {what}')
    for number, entry in enumerate(listed):
        # What is no object has no fields: whoever asks for one says so.
        yield f"{path.name}: {key}[{number}]", entry if isinstance(entry, dict) else {}


def identity(entry: dict[str, Any], key: str) -> Id:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Unusable(f'expected a whole number or a text "{key}", got {kind_of(value)}')
    return value


def text_of(entry: Any, key: str, *, empty: bool = False) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise Unusable(f'expected a text "{key}", got {kind_of(value)}')
    if not empty and not value.strip():
        raise Unusable(f'"{key}" is empty')
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        raise Unusable(f'"{key}" is not text that UTF-8 can hold') from None
    return value


def optional_text(entry: dict[str, Any], key: str) -> str:
    """The text, or "" where there is none."""
    return "" if entry.get(key) is None else text_of(entry, key, empty=True)


def kind_of(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "none"}
    return names.get(type(value), json.dumps(value))


def image_file(folder: Path, names: list[str]) -> Path:
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise Unusable(f"{name} leads out of the image folder")
        try:
            if (folder / name).is_file():
                return folder / name
        except (OSError, ValueError):  # too long, or a NUL in it
            raise Unusable(f"{name[:80]!r} is no file name") from None
    raise Unusable(f"there is no image file {folder / names[0]}")
