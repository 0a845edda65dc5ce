"""A function over a list of items, divided among the processes that torchrun started; what is bad is named and skipped.

Each process takes every W-th item, so no item is padded in and none counts twice. Results travel with their index.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import torch.distributed as dist

from lavit.data.images import ImageError
from lavit.data.prefetch import cores, in_order
from lavit.data.stream import Dataset
from lavit.data.stream import Skipped as Skipped
from lavit.training.engine.distributed import from_first, is_distributed, rank, world_size

T = TypeVar("T")
R = TypeVar("R")

Entry = tuple[int, Any, Exception | None]
"""An item's index, and the item or why it cannot be used."""

MOST_WORKERS = 16

BAD = (ValueError, OSError)
"""What an item that cannot be used raises; `lavit.data.ImageError` is a ValueError."""


class Kept(Protocol):
    """Results on the disk; `lavit.evaluation.journal.TaskJournal` is one. What is skipped is not kept."""

    def known(self) -> dict[int, Any]: ...
    def add(self, done: Sequence[tuple[int, Any]]) -> None: ...


@dataclass(frozen=True)
class Evaluated(Generic[R]):
    """results: by the item's index, in order. skipped: in order. Every index is in exactly one of them."""

    results: dict[int, R]
    skipped: list[Skipped]

    def as_dict(self) -> dict[str, Any]:
        return {"evaluated": len(self.results), "skipped": [item.as_dict() for item in self.skipped]}


def evaluate_items(
    items: Dataset[T],
    function: Callable[[list[T]], Sequence[R]],
    *,
    batch_size: int = 1,
    name: Callable[[int], str] | None = None,
    bad: tuple[type[Exception], ...] = BAD,
    progress: Callable[[int, int], None] | None = None,
    kept: Kept | None = None,
    workers: int | None = 0,
) -> Evaluated[R]:
    """``function`` of all items, a batch at a time; every process gets the results of all.

    items: the same on every process. An item is taken only by the process whose turn it is.
    function: a list of up to batch_size items -> as many results, which can be pickled. Where it fails on a batch, the
        items are tried one by one, so that a bad one costs no other.
    name: of an item, for ``Skipped``; by default ``items.name(i)`` where there is such a method, else "item i".
    bad: what an unusable item raises, on being taken or in the function. Anything else is a failure of the whole: it is
        raised on every process, none is left waiting.
    progress: gets how many items this process has done, of how many; those known from before are not its own.
    kept: results known from before, as the first process has them, are not computed again; new ones are added, a batch
        at a time.
    workers: threads that take items ahead of their batch, for items that are read from files: up to a batch and two for
        each thread wait beside the batch in use. ``items[i]`` is then called by several of them at once. None: one for
        each core of this process's share, at most 16.
    Raises ValueError for a batch size below 1; RuntimeError where another process failed or has another number of
    items, and for a wrong number of results.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a number >= 1, got {batch_size}")
    total, failure = -1, None
    results: list[tuple[int, R]] = []
    skipped: list[Skipped] = []
    known = {} if kept is None else _known(kept)
    try:
        total = len(items)
        if name is None:
            own_name = getattr(items, "name", None)
            name = own_name if callable(own_name) else "item {}".format
        if rank() == 0:
            results += known.items()
        own = [index for index in range(total) if index not in known][rank() :: world_size()]
        workers = _share_of_cores() if workers is None else workers
        with closing(_taken(items, own, bad, batch_size, workers)) as entries:
            for begin in range(0, len(own), batch_size):
                done, left_out = _batch(list(islice(entries, batch_size)), function, bad)
                results += done
                if kept is not None:
                    kept.add(done)
                skipped += [Skipped(index, name(index), _reason(error)) for index, error in left_out]
                if progress is not None:
                    progress(min(begin + batch_size, len(own)), len(own))
        pickle.dumps(results)  # here, where a failure can still be told to the others
    except Exception as error:
        failure = error
    return _gather(total, results, skipped, failure)


def _known(kept: Kept) -> dict[int, Any]:
    """What the first process has; its failure is raised on all."""
    found: Any = None
    if rank() == 0:
        try:
            found = kept.known()
        except OSError as error:
            found = error
    found = from_first(found)
    if isinstance(found, OSError):
        raise found
    return found


def _share_of_cores() -> int:
    """Of this machine's cores, for each of its processes; images wait for each, so not without end."""
    return min(MOST_WORKERS, max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))))


def _taken(
    items: Dataset[T], indices: Sequence[int], bad: tuple[type[Exception], ...], batch_size: int, workers: int
) -> Generator[Entry, None, None]:
    """The items of these indices, or the errors that say why they cannot be used, in their order."""

    def take(index: int) -> Entry:
        try:
            return index, items[index], None
        except bad as error:
            return index, None, error

    if workers == 0:
        yield from map(take, indices)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="lavit-read")
    try:
        yield from in_order(pool, take, indices, batch_size + 2 * workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _batch(
    entries: Sequence[Entry],
    function: Callable[[list[T]], Sequence[R]],
    bad: tuple[type[Exception], ...],
) -> tuple[list[tuple[int, R]], list[tuple[int, Exception]]]:
    taken: list[tuple[int, T]] = [(index, item) for index, item, error in entries if error is None]
    left_out = [(index, error) for index, _, error in entries if error is not None]
    done: list[tuple[int, R]] = []
    try:
        done += _call(function, taken)
    except bad as error:
        if len(taken) == 1:
            left_out.append((taken[0][0], error))
        else:
            for pair in taken:
                try:
                    done += _call(function, [pair])
                except bad as single:
                    left_out.append((pair[0], single))
    return done, left_out


def _call(function: Callable[[list[T]], Sequence[R]], taken: list[tuple[int, T]]) -> list[tuple[int, R]]:
    if not taken:
        return []
    results = function([item for _, item in taken])
    if len(results) != len(taken):
        raise RuntimeError(f"function: expected {len(taken)} results for as many items, got {len(results)}")
    return [(index, result) for (index, _), result in zip(taken, results, strict=True)]


def _reason(error: Exception) -> str:
    told = error.reason if isinstance(error, ImageError) else str(error)  # the item's name says which image
    return " ".join(told.split()) or type(error).__name__


def _gather(
    total: int, results: list[tuple[int, R]], skipped: list[Skipped], failure: Exception | None
) -> Evaluated[R]:
    said = None if failure is None else f"{type(failure).__name__}: {_reason(failure)}"
    mine = (total, [], [], said) if said else (total, results, skipped, None)
    parts: list[Any] = [mine]
    if is_distributed():
        parts = [None] * world_size()
        dist.all_gather_object(parts, mine)
    if failure is not None:
        raise failure
    for number, (_, _, _, reason) in enumerate(parts):
        if reason is not None:
            raise RuntimeError(f"process {number} failed: {reason}")
    if len(totals := {part[0] for part in parts}) > 1:
        raise RuntimeError(f"items: expected the same on every process, got {[part[0] for part in parts]} items")
    pairs = [pair for part in parts for pair in part[1]]
    left_out = sorted((item for part in parts for item in part[2]), key=lambda item: item.index)
    found = sorted([index for index, _ in pairs] + [item.index for item in left_out])
    if found != list(range(*totals)):
        raise RuntimeError(f"items: expected a result of each of {total} exactly once, got {len(found)}")
    return Evaluated(dict(sorted(pairs, key=lambda pair: pair[0])), left_out)
