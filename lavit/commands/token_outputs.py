"""What `lavit tokenize` writes: JSON, lines of JSON, a table, maps. Each image is written when its tokens are there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from PIL import Image

from lavit.commands import outputs
from lavit.commands.image_inputs import Unread, one_line
from lavit.report.token_map import draw_sheet, draw_token_map, shrink

SHEET_TILES, TILE = 400, 256


@dataclass
class Tokenized:
    """One image. kept: (row, column) of the patch of each id."""

    file: str
    size: tuple[int, int]
    grid: tuple[int, int]
    ids: list[int]
    kept: list[tuple[int, int]]

    def record(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "size": self.size,
            "grid": self.grid,
            "tokens": len(self.ids),
            "ids": self.ids,
            "kept": self.kept,
        }


class Output(Protocol):
    def add(self, result: Tokenized) -> None: ...

    def skip(self, unread: Unread) -> None: ...


@contextmanager
def json_file(target: str, head: Mapping[str, Any]) -> Iterator[Output]:
    """The file, whole or not at all; the standard output as it comes. head: what is said of all images."""
    with outputs.open_text(target) as file:
        written = _Lines(file, head) if target.lower().endswith(outputs.LINES) else _Object(file, head)
        yield written
        written.end()


class _Lines:
    """A line for the head, and one for each image: those that were skipped stand in their place."""

    def __init__(self, file: IO[str], head: Mapping[str, Any]) -> None:
        self._file = file
        self._write(head)

    def add(self, result: Tokenized) -> None:
        self._write(result.record())

    def skip(self, unread: Unread) -> None:
        self._write(vars(unread))

    def end(self) -> None:
        pass

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")


class _Object:
    """One object, with a line for each image: to be read by people and by line-wise tools too."""

    def __init__(self, file: IO[str], head: Mapping[str, Any]) -> None:
        self._file, self._head = file, head
        self._skipped: list[Unread] = []
        self._begun = False

    def add(self, result: Tokenized) -> None:
        # Not before there is an image: where there is none, the standard output shall get nothing.
        before = ",\n  " if self._begun else "{" + json.dumps(self._head)[1:-1] + ',\n "images": [\n  '
        self._file.write(before + json.dumps(result.record()))
        self._begun = True

    def skip(self, unread: Unread) -> None:
        self._skipped.append(unread)

    def end(self) -> None:
        records = ",\n  ".join(json.dumps(vars(unread)) for unread in self._skipped)
        self._file.write('\n ],\n "skipped": ' + (f"[\n  {records}\n ]" if records else "[]") + "}\n")


class Table:
    """A line for each image: file, pixels, tokens of patches, the first ids. Printed at the end, when the width of its
    columns is known; until then the lines are kept."""

    HEAD = ("file", "pixels", "tokens", "of", "ids")

    def __init__(self, shown: int = 8) -> None:
        self._rows, self._shown = [self.HEAD], shown

    def add(self, result: Tokenized) -> None:
        ids = " ".join(map(str, result.ids[: self._shown])) + (" ..." if len(result.ids) > self._shown else "")
        size, patches = f"{result.size[0]}x{result.size[1]}", str(result.grid[0] * result.grid[1])
        self._rows.append((one_line(result.file), size, str(len(result.ids)), patches, ids))

    def skip(self, unread: Unread) -> None:
        pass

    def print(self) -> None:
        file, pixels, tokens, patches = (max(len(row[c]) for row in self._rows) for c in range(4))
        for row in self._rows:
            line = f"{row[0]:<{file}}  {row[1]:>{pixels}}  {row[2]:>{tokens}}  {row[3]:>{patches}}  {row[4]}"
            print(line.rstrip())


class Maps:
    """The map of one image, or a sheet of the small maps of the first of several."""

    def __init__(self, target: str, several: bool) -> None:
        self._target, self._tile = target, TILE if several else None
        self._maps: list[Image.Image] = []
        self._labels: list[str] = []
        self._seen = 0

    @property
    def full(self) -> bool:
        """What is read from now on will not be shown."""
        return len(self._maps) >= SHEET_TILES

    def add(self, result: Tokenized, image: Image.Image | None) -> None:
        """image: as it was read, or smaller; None if it was read when the sheet was full."""
        self._seen += 1
        if self.full or image is None:
            return
        columns = result.grid[1]
        keep = [False] * (result.grid[0] * columns)
        for row, column in result.kept:
            keep[row * columns + column] = True
        # On a sheet the numbers would be too small to read.
        picture = draw_token_map(image, keep, result.grid, result.ids if self._tile is None else None)
        self._maps.append(picture if self._tile is None else shrink(picture, self._tile))
        self._labels.append(f"{one_line(Path(result.file).name)}: {len(result.ids)} of {len(keep)}")

    def write(self) -> None:
        sheet = self._maps[0] if len(self._maps) == 1 else draw_sheet(self._maps, self._labels, TILE)
        outputs.write_picture(sheet, self._target)
        if len(self._maps) < self._seen:
            shown = f"the first {len(self._maps)} of {self._seen} images"
            print(f"lavit: {self._target} shows {shown}", file=sys.stderr)
