"""Items read ahead of their use, computed on in batches, and written while the next batch is computed.

    items ── read: N threads ──▶ gather: a thread ──▶ compute: the caller ──▶ write: a thread

Everything keeps the order of the items, and every arrow has a bound: memory does not grow with their number. Threads,
not processes: Pillow lets go of the interpreter's lock while it decodes and resizes, threads start in no time, and no
image is pickled on the way.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from lavit.data.images import ImageError

Item = TypeVar("Item")
Read = TypeVar("Read")
Value = TypeVar("Value")
Entry = tuple[Item, Any]
"""An item, and what was read of it or the error that told why it cannot be used."""

BATCHES = 2
"""How many wait between two parts: one that is taken next, one that comes in meanwhile."""


@dataclass
class Timing:
    """Where the seconds of a run went.

    items, batches: what was computed on; items that cannot be read do not count. readers: threads, 0 for none.
    seconds: the whole run. reading: work of all readers; reading_span: from the start to the last read. starved,
    blocked: compute waited for a batch, and for the writer. writing: work of the writer.
    """

    readers: int
    items: int = 0
    batches: int = 0
    seconds: float = 0.0
    reading: float = 0.0
    reading_span: float = 0.0
    starved: float = 0.0
    blocked: float = 0.0
    writing: float = 0.0

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / self.seconds if self.seconds else 0.0

    def shares(self) -> dict[str, float]:
        """Of its time, what each part waits: compute for items (``starved``) and for the writer (``blocked``), readers
        for room (``readers_idle``), the writer for results (``writer_idle``). Without readers nothing waits."""
        seconds = self.seconds or 1.0
        if not self.readers:
            return dict.fromkeys(("starved", "blocked", "readers_idle", "writer_idle"), 0.0)
        idle = 1 - self.reading / (self.readers * self.reading_span) if self.reading_span else 0.0
        return {
            "starved": self.starved / seconds,
            "blocked": self.blocked / seconds,
            "readers_idle": max(0.0, idle),
            "writer_idle": max(0.0, 1 - self.writing / seconds),
        }


class Pipeline(Generic[Item, Read]):
    """Reads, computes and writes items; see the module's drawing.

    read: an item to what is computed on; several threads call it. An error of the types ``bad`` belongs to the item:
        it goes on to ``write`` in the item's place. Any other ends the run.
    gather: what was read of at most ``batch_size`` items, at least one, to the argument of ``compute``; copies to a
        device belong here.
    compute: one batch; called in the thread that runs the pipeline.
    write: the entries of a batch in their order, and what compute returned; None where no item could be read.
    workers: threads that read; 0: everything in the caller's thread, one after the other.
    bad: errors of items.
    """

    def __init__(
        self,
        read: Callable[[Item], Read],
        gather: Callable[[Sequence[Read]], Any],
        compute: Callable[[Any], Any],
        write: Callable[[Sequence[Entry], Any], None],
        *,
        batch_size: int,
        workers: int,
        bad: tuple[type[Exception], ...] = (ImageError,),
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        self.read, self.gather, self.compute, self.write = read, gather, compute, write
        self.batch_size, self.workers, self.bad = batch_size, workers, bad

    def run(self, items: Iterable[Item]) -> Timing:
        """All items. Whatever ends it early (an error of a part, Ctrl-C) ends its threads before it is raised; a read
        that has begun is waited for."""
        timing = Timing(self.workers)
        begin = time.perf_counter()
        try:
            if self.workers:
                self._run_ahead(items, timing)
            else:
                for entries in self._batches(map(self._entry, items)):
                    self.write(entries, self._computed(self._gathered(entries), timing))
        finally:
            timing.seconds = time.perf_counter() - begin
        return timing

    def _run_ahead(self, items: Iterable[Item], timing: Timing) -> None:
        batches: _Channel[tuple[Sequence[Entry], list[Any]]] = _Channel(BATCHES)
        results: _Channel[tuple[Sequence[Entry], Any]] = _Channel(BATCHES)
        reader = threading.Thread(target=self._read_all, args=(items, batches, timing), name="lavit-gather")
        writer = threading.Thread(target=self._write_all, args=(results, timing), name="lavit-write")
        reader.start()
        writer.start()
        try:
            for entries, gathered in batches:
                results.put((entries, self._computed(gathered, timing)))
            results.end()
            writer.join()
        except _Broken:
            pass  # by the writer, whose error follows
        finally:
            batches.break_off()
            results.break_off()
            reader.join()
            writer.join()
        timing.starved, timing.blocked = batches.taker_waited, results.giver_waited
        if results.error is not None:
            raise results.error

    def _computed(self, gathered: list[Any], timing: Timing) -> Any:
        if not gathered:
            return None
        count, batch = gathered
        result = self.compute(batch)
        timing.items += count
        timing.batches += 1
        return result

    # In the thread that gathers.

    def _read_all(self, items: Iterable[Item], batches: _Channel, timing: Timing) -> None:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="lavit-read")
        begin, busy, last = time.perf_counter(), [0.0] * self.workers, [0.0] * self.workers
        own = threading.local()
        numbers = iter(range(self.workers))

        def entry(item: Item) -> Entry:
            if not hasattr(own, "number"):
                own.number = next(numbers)
            start = time.perf_counter()
            try:
                return self._entry(item)
            finally:
                last[own.number] = time.perf_counter()
                busy[own.number] += last[own.number] - start

        try:
            # Room for a batch to be gathered, and work for every reader meanwhile.
            for entries in self._batches(in_order(pool, entry, items, self.batch_size + 2 * self.workers)):
                batches.put((entries, self._gathered(entries)))
            batches.end()
        except _Broken:
            pass
        except BaseException as error:
            batches.end(error)
        finally:
            pool.shutdown(cancel_futures=True)
            timing.reading, timing.reading_span = sum(busy), max(0.0, max(last) - begin)

    def _entry(self, item: Item) -> Entry:
        try:
            return item, self.read(item)
        except self.bad as error:
            return item, error

    def _batches(self, entries: Iterable[Entry]) -> Iterator[list[Entry]]:
        """Batches of batch_size items that could be read, the others among them."""
        batch: list[Entry] = []
        good = 0
        for entry in entries:
            batch.append(entry)
            good += not isinstance(entry[1], self.bad)
            # A long row of bad ones is told before its end, too.
            if good == self.batch_size or len(batch) >= 64 * self.batch_size:
                yield batch
                batch, good = [], 0
        if batch:
            yield batch

    def _gathered(self, entries: Sequence[Entry]) -> list[Any]:
        """How many items, and what compute gets; nothing for no item."""
        good = [value for _, value in entries if not isinstance(value, self.bad)]
        return [len(good), self.gather(good)] if good else []

    # In the thread that writes.

    def _write_all(self, results: _Channel, timing: Timing) -> None:
        try:
            for entries, result in results:
                start = time.perf_counter()
                self.write(entries, result)
                timing.writing += time.perf_counter() - start
        except _Broken:
            pass
        except BaseException as error:
            results.break_off(error)


def cores() -> int:
    """Of the machine, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    pool: ThreadPoolExecutor, read: Callable[[Item], Read], items: Iterable[Item], room: int
) -> Iterator[Read]:
    """What ``read`` makes of the items, in their order, by the threads of the pool. At most ``room`` items wait to be
    read or to be given out. An error of ``read`` is raised where its item's turn is."""
    waiting: deque[Future[Read]] = deque()
    source = iter(items)
    while True:
        waiting.extend(pool.submit(read, item) for item in islice(source, room - len(waiting)))
        if not waiting:
            return
        yield waiting.popleft().result()


class _Broken(Exception):
    """The other side is gone, and takes or gives nothing more."""


class _Channel(Generic[Value]):
    """Values from one thread to another, at most ``room`` of them on the way; it counts how long each side waits."""

    def __init__(self, room: int) -> None:
        self._room, self._values, self._changed = room, deque[Value](), threading.Condition()
        self._ended = self._broken = False
        self.error: BaseException | None = None
        self.giver_waited = self.taker_waited = 0.0

    def put(self, value: Value) -> None:
        """Waits for room; raises _Broken after `break_off`."""
        start = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._broken or len(self._values) < self._room)
            self.giver_waited += time.perf_counter() - start
            if self._broken:
                raise _Broken
            self._values.append(value)
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing follows. Whoever iterates gets what is there, and then the error, if there is one."""
        with self._changed:
            self._ended, self.error = True, self.error or error
            self._changed.notify_all()

    def break_off(self, error: BaseException | None = None) -> None:
        """What is there is dropped, and neither side waits any more."""
        with self._changed:
            self._broken, self.error = True, self.error or error
            self._values.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Value]:
        while True:
            start = time.perf_counter()
            with self._changed:
                self._changed.wait_for(lambda: self._broken or self._values or self._ended)
                self.taker_waited += time.perf_counter() - start
                if self._broken:
                    raise _Broken
                if not self._values:
                    break
                value = self._values.popleft()
                self._changed.notify_all()
            yield value
            del value
        if self.error is not None:
            raise self.error
