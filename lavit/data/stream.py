"""An endless row of batches whose place can be saved and found again."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, astuple, dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from lavit.data.images import ImageError
from lavit.data.record import Record
from lavit.data.whole_numbers import whole_number

log = logging.getLogger("lavit.data")

Transform = Callable[[Any], Tensor]
T_co = TypeVar("T_co", covariant=True)


class Dataset(Protocol[T_co]):
    """Items by number; taking one may fail. May also have ``name(i) -> str`` for messages and ``fingerprint: str`` of
    what it holds."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> T_co: ...


@dataclass(frozen=True)
class Skipped(Record):
    """An item that could not be used, and why."""

    index: int
    name: str
    reason: str


class Epochs:
    """One permutation of ``count`` items after the other, each drawn from (seed, epoch) and strung together; process
    ``rank`` of ``world_size`` takes every ``world_size``-th. seed: anything with its own text. shuffle: False keeps the
    order of the items in every epoch."""

    def __init__(self, count: int, seed: object, rank: int, world_size: int, *, shuffle: bool = True) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 <= rank < world_size = {world_size}, got {rank}")
        self.count, self.seed, self.rank, self.world_size, self.shuffle = count, seed, rank, world_size, shuffle
        self._order = (-1, np.empty(0, np.int64))

    def draws(self, epochs: int) -> int:
        """How many draws the process has in the first ``epochs``."""
        return max(0, -(-(epochs * self.count - self.rank) // self.world_size))

    def epoch(self, draw: int) -> int:
        return (self.rank + draw * self.world_size) // self.count

    def __getitem__(self, draw: int) -> int:
        """The item of the process's draw, from 0."""
        epoch, place = divmod(self.rank + draw * self.world_size, self.count)
        if not self.shuffle:
            return place
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
            self._order = (epoch, torch.randperm(self.count, generator=generator).numpy())
        return int(self._order[1][place])


def seed_of(*names: object) -> int:
    """A generator's seed. A hash, because names that differ by 1 must not give related numbers, nor (1, 0) those of
    (0, 1)."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=7).digest(), "little")


@dataclass(eq=False, repr=False)
class DataStream(Iterator[dict[str, Tensor]]):
    """Batches ``{key: (B, ...) tensor, "index": (B,) int64}`` of a dataset, one epoch after the other.

    Every epoch is one permutation of the dataset, drawn from (seed, epoch). The epochs are strung together; of that row
    of items, process ``rank`` of ``world_size`` reads every ``world_size``-th, and batches are cut from what it reads:
    they are always full, and one may reach into the next epoch. An item that cannot be read (ImageError, OSError) is
    left out, named once in the log and listed in ``skipped``; the next good one takes its place.

    dataset: a tensor or array of rows (images, cached features; memory-mapped or not) or what says of itself that it
        gives several ``rows_at_once``, or anything with ``len`` and ``dataset[i]``, such as `ImageFolder`.
    transform: maps rows of the array, or a list of items, to a tensor with one row for each
        (`LaVITImageProcessor`). It must not draw random numbers: several threads call it.
    shuffle: False keeps the order of the dataset in every epoch.
    epochs: end after so many epochs; then only the last batch may be short. None: no end.
    workers: threads that read and transform single items ahead of their use; 0 reads when asked. The batches are the
        same for any number. Rows of an array are gathered at once and need none.

    The stream is its own iterator. `state_dict` is the place after the last batch that was handed out: a stream made
    with the same arguments goes on from there with exactly the batches that would have followed. Every process has its
    own place. `close` ends the threads.

    Raises TypeError for a seed or a number of something that is not whole, and ValueError for one out of range.
    """

    dataset: Dataset[Any] | Tensor | np.ndarray
    batch_size: int
    _: KW_ONLY
    key: str = "images"
    transform: Transform | None = None
    shuffle: bool = True
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    epochs: int | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("world_size", 1), ("workers", 0)):
            if (value := whole_number(name, getattr(self, name))) < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        whole_number("seed", self.seed)
        if self.epochs is not None and whole_number("epochs", self.epochs) < 1:
            raise ValueError(f"epochs: expected at least 1 or None, got {self.epochs}")
        if self.key == "index":
            raise ValueError("key: 'index' is taken by the numbers of the items")
        if len(self.dataset) == 0:
            raise ValueError("dataset: expected at least one item, got none")
        self._order = Epochs(len(self.dataset), self.seed, self.rank, self.world_size, shuffle=self.shuffle)
        self._end = sys.maxsize if self.epochs is None else self._order.draws(self.epochs)
        self._place = 0  # draws of this process that the batches handed out have used up
        self._bad: dict[int, Skipped] = {}
        self._ahead: deque[tuple[int, Callable[[], Tensor]]] = deque()  # draws that are being read, in their order
        self._pool: ThreadPoolExecutor | None = None

    @property
    def skipped(self) -> list[Skipped]:
        """The items left out so far, in the order of their discovery."""
        return list(self._bad.values())

    @property
    def epoch(self) -> int:
        """The epoch of the next item, from 0."""
        return self._order.epoch(self._place)

    def __next__(self) -> dict[str, Tensor]:
        try:
            at_once = isinstance(self.dataset, Tensor | np.ndarray) or getattr(self.dataset, "rows_at_once", False)
            place, indices, rows = self._rows() if at_once else self._items()
        except BaseException:
            self.close()  # what was read for the failed batch is gone: read it again next time
            raise
        if not indices:
            raise StopIteration
        self._place = place
        return {self.key: rows, "index": torch.tensor(indices)}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, texts and lists."""
        return {
            "place": self._place,
            "skipped": [list(astuple(s)) for s in self._bad.values()],
            "items": len(self.dataset),
            "fingerprint": getattr(self.dataset, "fingerprint", None),
            "seed": self.seed,
            "shuffle": self.shuffle,
            "rank": self.rank,
            "world_size": self.world_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved place. ValueError if it is a place in another row of items: it could not be found again."""
        here = self.state_dict()
        if state.keys() != here.keys():
            raise ValueError(f"state: expected the keys {sorted(here)}, got {sorted(state)}")
        for name in here.keys() - {"place", "skipped"}:
            if state[name] != here[name]:
                raise ValueError(f"state: was saved with {name} = {state[name]!r}, this stream has {here[name]!r}")
        self.close()
        self._place = state["place"]
        self._bad = {index: Skipped(index, name, reason) for index, name, reason in state["skipped"]}

    def close(self) -> None:
        """End the threads. The stream may be used again; it then starts new ones."""
        self._ahead.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self) -> DataStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _rows(self) -> tuple[int, list[int], Tensor]:
        end = min(self._place + self.batch_size, self._end)
        indices = [self._order[place] for place in range(self._place, end)]
        rows = torch.as_tensor(self.dataset[indices])  # type: ignore[index]
        if self.transform is not None and indices:
            rows = self._transformed(rows, len(indices))
        return end, indices, rows

    def _items(self) -> tuple[int, list[int], Tensor]:
        place, indices, rows = self._place, list[int](), list[Tensor]()
        misses = 0
        while len(indices) < self.batch_size and (drawn := self._draw(place)) is not None:
            index, read = drawn
            place += 1
            row = self._result(index, read)
            if row is None:
                misses += 1
                self._give_up_after(misses)
                continue
            if rows and row.shape != rows[0].shape:
                first = tuple(rows[0].shape[1:])
                raise ValueError(f"{self._name(index)}: expected shape {first} as before, got {tuple(row.shape[1:])}")
            misses = 0
            rows.append(row)
            indices.append(index)
        return place, indices, torch.cat(rows) if rows else torch.empty(0)

    def _draw(self, place: int) -> tuple[int, Callable[[], Tensor]] | None:
        """Draw number ``place``, after those that follow it have been given to the threads."""
        # Two batches ahead: one that the threads work on while the other is being gathered.
        end = min(place + (2 * self.batch_size if self.workers else 1), self._end)
        for draw in range(place + len(self._ahead), end):
            index = self._order[draw]
            self._ahead.append((index, self._reading(index)))
        return self._ahead.popleft() if self._ahead else None

    def _reading(self, index: int) -> Callable[[], Tensor]:
        if not self.workers or index in self._bad:
            return partial(self._row, index)
        # Threads, not processes: decoding an image lets go of the interpreter's lock, threads start in no time, and no
        # row is copied and nothing pickled on the way.
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="lavit-data")
        return self._pool.submit(self._row, index).result

    def _row(self, index: int) -> Tensor:
        """Item ``index`` as a batch of one."""
        item = self.dataset[index]
        if self.transform is not None:
            return self._transformed([item], 1)
        if not isinstance(item, Tensor | np.ndarray):
            raise TypeError(f"transform: needed to make a tensor of {self._name(index)}, a {type(item).__name__}")
        return torch.as_tensor(item)[None]

    def _transformed(self, items: Any, count: int) -> Tensor:
        assert self.transform is not None
        rows = self.transform(items)
        if not isinstance(rows, Tensor) or rows.dim() < 1 or rows.shape[0] != count:
            got = f"shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(f"transform: expected a tensor with {count} rows for {count} items, got {got}")
        return rows

    def _result(self, index: int, read: Callable[[], Tensor]) -> Tensor | None:
        """The row, or None for an item that cannot be read."""
        if index in self._bad:
            return None
        try:
            return read()
        except (ImageError, OSError) as error:
            name = self._name(index)
            self._bad[index] = Skipped(index, name, str(error).removeprefix(f"{name}: "))
            log.warning("skipped %s: %s (%d so far)", name, self._bad[index].reason, len(self._bad))
            return None

    def _give_up_after(self, misses: int) -> None:
        """An error instead of an endless search. A process that shares its epochs with others may miss the few good
        items for several epochs: hence the margin."""
        total = len(self.dataset)
        if len(self._bad) == total or misses >= 2 * total + 64:
            first = self.skipped[0]
            raise ImageError(
                f"no item can be read: {len(self._bad)} of {total} failed, the first is {first.name}: {first.reason}"
            )

    def _name(self, index: int) -> str:
        name = getattr(self.dataset, "name", None)
        return name(index) if callable(name) else f"item {index}"
