"""Features of image files, one cache for all stages: a row belongs to a file, not to a data set.

    features-<fingerprint>/<token>.npy   rows (n, N, C) of one piece, memory-mapped when read
                           <token>.json  which files they are of; written last, it makes the piece count

The fingerprint covers what the features depend on (encoder, standardisation, processor) and the precision; the stages
that follow take rows of any. A file is known by its path, size and time of change, and where these are new by a digest
of its contents: data sets that share files, subsets of one and other orders share rows, and a folder that was moved or
linked to keeps them. Whoever lacks rows computes them and adds pieces of its own, so that an interrupted run goes on
where it was and several may work at once: no file is ever changed. Two that compute the same row have it twice, which
does no harm. Rows that a killed process has left without a description are deleted after an hour (`STALE`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavit.data import DataStream, ImageError
from lavit.data.atomic_write import atomic_write, sync_folder
from lavit.data.image_folder import ImageFiles
from lavit.training.engine import config as configuration
from lavit.training.engine import distributed
from lavit.training.engine.feature_cache import STORED
from lavit.training.engine.identity import add_tensors
from lavit.training.engine.recipe import CONFIG_FILE
from lavit.training.engine.validation import BEST

logger = logging.getLogger(__name__)

FEATURES = "features"
"""Folder of them in a run's."""
PIECE_BYTES = 1 << 26
"""Of a piece, at least 16 rows: what an interrupted run may lose."""
STALE = 3600.0
"""Seconds after which rows without a description, which is written in the same moment, are nobody's any more."""

State = tuple[str, int, int]
"""Absolute path, size, time of change in nanoseconds."""


@dataclass(frozen=True)
class CachePlaces:
    """Folders that features are looked for in, and the one that gets new ones; None: memory. shared: whether that is
    stage 1's."""

    read: tuple[Path, ...] = ()
    write: Path | None = None
    shared: bool = False

    @classmethod
    def of(cls, config: Any) -> CachePlaces:
        """For a stage that follows the tokenizer's: first the folder of stage 1 (``config.tokenizer``, or where its
        ``cache.folder`` was), which also gets new rows where it is a run's and can be written to, then the run's own.
        Nothing is written without an output."""
        own = None if config.output is None else Path(config.output) / FEATURES
        if config.tokenizer is None:
            return cls(() if own is None else (own,), own)
        first = Path(config.tokenizer)
        if first.name == BEST and (first.parent / CONFIG_FILE).is_file():
            first = first.parent  # the best model of a run, which has one encoder for all
        kept = _folder_of_run(first)
        shared = kept.is_dir() or (first / CONFIG_FILE).is_file()
        writable = os.access(kept if kept.is_dir() else first, os.W_OK)
        shared = distributed.from_first(shared and writable and own is not None)
        read = tuple(dict.fromkeys(place for place in (kept, first / FEATURES, own) if place is not None))
        return cls(read, kept if shared else own, shared)


NOWHERE = CachePlaces()


def _folder_of_run(run: Path) -> Path:
    """Where the features of a run are: its ``cache.folder``, where that was set and holds some, or else its own."""
    told = None
    with suppress(configuration.ConfigError):
        told = configuration.read_yaml(run / CONFIG_FILE).get("cache")
    named = told.get("folder") if isinstance(told, Mapping) else None
    if isinstance(named, str) and named and any(Path(named).glob("features-*")):
        return Path(named)
    return run / FEATURES


class FeatureRows:
    """Rows (n, N, C) that lie in several files or in memory. ``rows[i]``, ``rows[[i, j]]``, ``rows[tensor]``,
    ``rows.split(n)`` are tensors on the CPU, as of one tensor."""

    rows_at_once = True  # for `DataStream`
    device = torch.device("cpu")

    def __init__(
        self, pieces: Sequence[Tensor], places: Sequence[tuple[int, int]], dtype: torch.dtype | None = None
    ) -> None:
        """places: (piece, row in it) of each row. dtype: of what is read; None: that of the pieces."""
        self.pieces, self.dtype = list(pieces), dtype
        self.places = np.array(places, dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int | Sequence[int] | Tensor | slice) -> Tensor:
        chosen = self.places[index.numpy() if isinstance(index, Tensor) else index]
        if chosen.ndim == 1:
            row = self.pieces[int(chosen[0])][int(chosen[1])]
            return row.to(self.dtype or row.dtype)
        example = self.pieces[0]
        found = torch.empty((len(chosen), *example.shape[1:]), dtype=self.dtype or example.dtype)
        for piece in np.unique(chosen[:, 0]).tolist():
            own = np.flatnonzero(chosen[:, 0] == piece)
            found[torch.from_numpy(own)] = self.pieces[piece][torch.from_numpy(chosen[own, 1])].to(found.dtype)
        return found

    def split(self, count: int) -> Iterator[Tensor]:
        for start in range(0, len(self), count):
            yield self[start : start + count]


@dataclass
class FileFeatures:
    """values: a row for each file that could be read, in the order of the data set. numbers: of these files in it.
    skipped: the others, as (number, name, reason). computed: how many rows were not there before."""

    values: FeatureRows
    numbers: list[int]
    skipped: list[tuple[int, str, str]]
    computed: int = 0


class FeatureFiles:
    """The pieces of one fingerprint in some folders.

    roots: folders that are looked through, in this order. write_to: the one of them that gets new pieces; None: new
    rows are kept in memory. dtype: precision of the rows. any_precision: those of every other will do, the most exact
    first, and are read as float32; new ones are as exact as the most exact there, `dtype` where there are none.
    """

    def __init__(
        self,
        roots: Iterable[str | os.PathLike[str]],
        depends_on: Iterable[tuple[str, Tensor]],
        *,
        write_to: str | os.PathLike[str] | None = None,
        dtype: torch.dtype = torch.float32,
        any_precision: bool = False,
    ) -> None:
        if dtype not in STORED:
            raise ValueError(f"dtype: expected float32, float16 or bfloat16, got {dtype}")
        marks = _marks(depends_on, STORED if any_precision else [dtype])
        places = list(dict.fromkeys(Path(root) for root in (*roots, write_to) if root is not None))
        self.folders = [(place / f"features-{mark}", one) for one, mark in marks.items() for place in places]
        if any_precision:
            there = next((one for folder, one in self.folders if folder.is_dir()), dtype)
            dtype = distributed.from_first(there)
        self.dtype = dtype
        self.write_to = None if write_to is None else Path(write_to) / f"features-{marks[dtype]}"
        self._read_as = torch.float32 if any_precision else dtype
        self._index = _Index()

    def find(self, files: ImageFiles) -> FeatureRows | None:
        """The rows of all files, if they are all there."""
        self._index.look(self.folders)
        places: list[tuple[int, int]] = []
        for path in files.paths:
            place = self._index.place(path)
            if place is None:
                break
            places.append(place)
        there = len(places) == len(files)
        return FeatureRows(self._index.pieces, places, self._read_as) if distributed.first_says(there) else None

    def of(
        self,
        files: ImageFiles,
        encode: Callable[[Tensor], Tensor],
        *,
        transform: Callable[[Any], Tensor],
        batch_size: int = 64,
        workers: int = 0,
    ) -> FileFeatures:
        """The rows of the files; those that are missing are computed and kept.

        encode, transform: images (b, 3, S, S) -> features (b, N, C); a file's image to such images. Several processes
        share the work, and need a common file system where rows are kept on the disk.
        Raises ImageError where not a single file can be read.
        """
        if self.write_to is not None and distributed.rank() == 0:
            _clear(self.write_to)
        self._index.look(self.folders)
        missing = [number for number, path in enumerate(files.paths) if self._index.place(path) is None]
        missing = distributed.from_first(missing)
        reasons: dict[int, str] = {}
        if missing:
            if len(missing) < len(files):
                logger.info("features of %d of %d images are there already", len(files) - len(missing), len(files))
            reasons = self._compute(files, missing, encode, transform, batch_size, workers)
        self._index.look(self.folders)
        if self.write_to is not None and distributed.rank() == 0:
            self._index.remember(self.write_to)  # files under new names
        places = [self._index.place(path) for path in files.paths]
        numbers = [number for number, place in enumerate(places) if place is not None]
        skipped = [
            (n, files.name(n), reasons.get(n, "could not be read")) for n, place in enumerate(places) if place is None
        ]
        if not numbers:
            first = skipped[0]
            raise ImageError(f"no item can be read: {len(skipped)} failed, the first is {first[1]}: {first[2]}")
        rows = FeatureRows(self._index.pieces, [place for place in places if place is not None], self._read_as)
        return FileFeatures(rows, numbers, skipped, len(missing) - len(skipped))

    def _compute(
        self, files: ImageFiles, missing: list[int], encode: Any, transform: Any, batch_size: int, workers: int
    ) -> dict[int, str]:
        """Returns why files could not be read, by their numbers."""
        # Without a place on the disk nothing is shared.
        rank, world = (0, 1) if self.write_to is None else (distributed.rank(), distributed.world_size())
        part = ImageFiles(files.root, [files.paths[n] for n in missing], max_pixels=files.max_pixels)
        stream = DataStream(
            part, batch_size, transform=transform, shuffle=False, epochs=1, workers=workers, rank=rank, world_size=world
        )
        waiting: list[tuple[list[Path], Tensor]] = []
        with stream:
            try:
                for batch in stream:
                    with torch.no_grad():
                        values = encode(batch["images"]).to("cpu", self.dtype)
                    waiting.append(([part.paths[i] for i in batch["index"].tolist()], values))
                    if sum(v.nbytes for _, v in waiting) >= PIECE_BYTES and sum(len(v) for _, v in waiting) >= 16:
                        self._keep(waiting)
                        waiting = []
            except ImageError:  # none of these can be read; others may be there
                if not stream.skipped:
                    raise
            if waiting:
                self._keep(waiting)
        bad = [(missing[item.index], item.reason) for item in stream.skipped]
        return dict(sum(distributed.from_all(bad), []))

    def _keep(self, waiting: list[tuple[list[Path], Tensor]]) -> None:
        paths = [path for own, _ in waiting for path in own]
        values = torch.cat([value for _, value in waiting])
        files = [self._index.known_as(path) for path in paths]
        if self.write_to is None:
            self._index.add(values, files, [digest for _, digest in files])
            return
        self.write_to.mkdir(parents=True, exist_ok=True)
        token = secrets.token_hex(8)
        bits = values.view(torch.int16) if values.dtype == torch.bfloat16 else values
        with atomic_write(self.write_to / f"{token}.npy") as file:
            np.save(file, bits.numpy())
        _describe(self.write_to / f"{token}.json", files, [digest for _, digest in files])


@dataclass
class _Index:
    """What the pieces hold. rows: digest of a file -> (piece, row). known: state of a file -> digest."""

    pieces: list[Tensor] = field(default_factory=list)
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    known: dict[State, str] = field(default_factory=dict)
    seen: set[Path] = field(default_factory=set)
    fresh: dict[State, str] = field(default_factory=dict)
    states: dict[Path, State] = field(default_factory=dict)
    digests: dict[State, str] = field(default_factory=dict)

    def look(self, folders: Iterable[tuple[Path, torch.dtype]]) -> None:
        """Reads the pieces that are new since the last time, whose rows have the folder's dtype. One that cannot be
        read is named and counts for none."""
        for folder, dtype in folders:
            for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
                if path in self.seen:
                    continue
                self.seen.add(path)
                try:
                    told = json.loads(path.read_text(encoding="utf-8"))
                    files = [((str(p), int(size), int(time)), str(d)) for p, size, time, d in told["files"]]
                    digests = [str(digest) for digest in told["rows"]]
                    values = _opened(path.with_suffix(".npy"), dtype) if digests else None
                    if values is not None and len(values) != len(digests):
                        raise ValueError(f"{len(values)} rows for {len(digests)} files")
                except (OSError, ValueError, KeyError, TypeError) as problem:
                    logger.warning("passing over the features in %s: %s", path, problem)
                    continue
                self.add(values, files, digests)

    def add(self, values: Tensor | None, files: Iterable[tuple[State, str]], digests: Iterable[str]) -> None:
        self.known.update(files)
        if values is None:
            return
        self.pieces.append(values)
        for row, digest in enumerate(digests):
            self.rows.setdefault(digest, (len(self.pieces) - 1, row))

    def place(self, path: Path) -> tuple[int, int] | None:
        """Where the row of a file is; None for one that has none, or that is not there."""
        try:
            state = self.state(path)
            if (digest := self.known.get(state)) is not None and digest in self.rows:
                return self.rows[digest]
            # Whether the contents are known under another name.
            digest = self.known_as(path)[1] if self.rows else None
        except OSError:
            return None
        if digest not in self.rows:
            return None
        self.known[state] = self.fresh[state] = digest
        return self.rows[digest]

    def state(self, path: Path) -> State:
        """As it was when it was first asked for."""
        if path not in self.states:
            found = os.stat(path)
            self.states[path] = (os.fspath(path.absolute()), found.st_size, found.st_mtime_ns)
        return self.states[path]

    def known_as(self, path: Path) -> tuple[State, str]:
        """The state of a file and the digest of its contents, which are read once."""
        state = self.state(path)
        if state not in self.digests:
            self.digests[state] = _digest(path)
        return state, self.digests[state]

    def remember(self, folder: Path) -> None:
        """Writes down the new names of known contents: next time these files need not be read."""
        if self.fresh:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{secrets.token_hex(8)}.json"
            _describe(path, list(self.fresh.items()), [])
            self.seen.add(path)
            self.fresh = {}


def _marks(depends_on: Iterable[tuple[str, Tensor]], dtypes: Iterable[torch.dtype]) -> dict[torch.dtype, str]:
    """32 hexadecimal digits of what features of files depend on besides the files, for each precision."""
    digests = {dtype: hashlib.blake2b(f"2 {dtype}".encode(), digest_size=16) for dtype in dtypes}
    for named in depends_on:
        for digest in digests.values():
            add_tensors(digest, [named])
    return {dtype: digest.hexdigest() for dtype, digest in digests.items()}


def _clear(folder: Path) -> None:
    """Deletes what a process that was killed while it wrote has left: rows without a description, or a part of them.
    Another may be about to describe its own, so they must be older than `STALE`."""
    for path in [*folder.glob("*.npy"), *folder.glob(".*.npy.*.tmp")]:
        with suppress(OSError):  # somebody else was faster
            old = time.time() - path.stat().st_mtime > STALE
            if old and not path.with_suffix(".json").exists():
                path.unlink()


def _describe(path: Path, files: Sequence[tuple[State, str]], rows: Sequence[str]) -> None:
    about = {"files": [[*state, digest] for state, digest in files], "rows": list(rows)}
    with atomic_write(path) as file:
        file.write(json.dumps(about).encode())
    sync_folder(path.parent)


def _opened(path: Path, dtype: torch.dtype) -> Tensor:
    # "c": pages become private to this process if ever written to, so that torch may wrap the file's memory.
    stored = np.lib.format.open_memmap(path, mode="c")
    if stored.dtype != STORED[dtype]:
        raise ValueError(f"expected {np.dtype(STORED[dtype])}, got {stored.dtype}")
    return torch.from_numpy(np.asarray(stored)).view(dtype)


def _digest(path: Path) -> str:
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()
