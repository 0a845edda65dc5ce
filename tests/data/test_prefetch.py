"""Reading ahead: the same as one after the other, in bounded memory, and an end that leaves no thread behind."""

from __future__ import annotations

import threading
import time
import weakref

import pytest

from lavit.data.images import ImageError
from lavit.data.prefetch import BATCHES, Pipeline, _Channel

LONG = 60.0  # seconds; nobody waits for so long unless something is broken


class Read:
    """What was read of an item; unlike a number it can be followed by a weak reference."""

    def __init__(self, item: int) -> None:
        self.item = item


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lavit-")]


def collect(items, *, workers, batch_size=4, bad=(), read=Read):
    """What is computed on, what is written, and the timing."""

    def read_or_fail(item):
        if item in bad:
            raise ImageError(f"number {item}")
        return read(item)

    computed, written = [], []
    pipeline = Pipeline(
        read_or_fail,
        lambda batch: [one.item for one in batch],
        lambda batch: computed.append(batch) or [10 * item for item in batch],
        lambda entries, result: written.append(([(i, type(v).__name__) for i, v in entries], result)),
        batch_size=batch_size,
        workers=workers,
    )
    return computed, written, pipeline.run(items)


@pytest.mark.parametrize("workers", [1, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 61])
def test_reading_ahead_changes_neither_batches_nor_order(workers, count):
    bad = {0, 7, 8, 9, 10, 11, 12, 60}

    def late(item):
        time.sleep(0.003 * (item % 3))  # later items are read before earlier ones
        return Read(item)

    computed, written, timing = collect(range(count), workers=workers, bad=bad, read=late)
    assert (computed, written) == collect(range(count), workers=0, bad=bad)[:2]
    entries = [entry for batch, _ in written for entry in batch]
    assert entries == [(i, "ImageError" if i in bad else "Read") for i in range(count)]
    assert [i for batch in computed for i in batch] == [i for i in range(count) if i not in bad]
    assert timing.items == sum(map(len, computed)) and timing.batches == len(computed)
    assert all(len(batch) == 4 for batch in computed[:-1])


def test_a_row_of_bad_items_is_told_before_its_end():
    _, written, timing = collect(range(1000), workers=2, batch_size=1, bad=range(1000))
    assert timing.items == 0 and len(written) > 10 and all(result is None for _, result in written)


def test_batches_are_read_while_one_is_computed_and_written_while_the_next_is():
    """Without overlap each of these waits would have no end."""
    read = [threading.Event() for _ in range(40)]
    begun = [threading.Event() for _ in range(10)]

    def compute(batch):
        number = batch[0] // 4
        begun[number].set()
        for item in range(4 * (number + 1), min(4 * (number + 1 + BATCHES), 40)):
            assert read[item].wait(LONG)
        return number

    def write(entries, number):
        assert number == 9 or begun[number + 1].wait(LONG)

    def note(item):
        read[item].set()
        return item

    Pipeline(note, list, compute, write, batch_size=4, workers=2).run(range(40))
    assert all(event.is_set() for event in begun)


@pytest.mark.parametrize("workers", [0, 1, 5])
def test_memory_does_not_grow_with_the_number_of_items(workers):
    batch_size, alive, most = 4, set(), 0
    lock = threading.Lock()

    def read(item):
        nonlocal most
        one = Read(item)
        with lock:
            alive.add(item)
            most = max(most, len(alive))
        weakref.finalize(one, alive.discard, item)
        return one

    compute = lambda batch: time.sleep(0.0005)  # noqa: E731
    Pipeline(read, list, compute, lambda *_: None, batch_size=batch_size, workers=workers).run(range(2000))
    # Read ahead; gathered and computed, one in each hand; between the parts, on both sides of compute.
    bound = batch_size + 2 * workers + (4 + 2 * BATCHES) * batch_size
    assert most <= bound


class Fault(Exception):
    pass


PARTS = ("items", "read", "gather", "compute", "write")
FAULTS = [(Fault, part, workers) for part in PARTS for workers in (0, 1, 4)]
# Ctrl-C comes to the caller's thread.
FAULTS += [(KeyboardInterrupt, part, 0) for part in PARTS] + [(KeyboardInterrupt, "compute", n) for n in (1, 4)]


@pytest.mark.parametrize("fault, part, workers", FAULTS)
def test_a_fault_of_any_part_is_raised_and_ends_the_threads(fault, part, workers):
    def at(name, value, number):
        if name == part and number >= 9:
            raise fault(f"{name} of {number}")
        return value

    written = []
    pipeline = Pipeline(
        lambda item: at("read", item, item),
        lambda batch: at("gather", batch, batch[-1]),
        lambda batch: at("compute", batch, batch[-1]),
        lambda entries, result: written.extend(at("write", result, result[-1])),
        batch_size=3,
        workers=workers,
    )
    with pytest.raises(fault, match=f"{part} of"):
        pipeline.run(at("items", item, item) for item in range(100))
    assert not threads()
    assert written == list(range(len(written))) and len(written) <= 9


def test_a_fault_ends_readers_that_wait_for_room_and_a_writer_that_waits_for_results():
    reads = []

    def compute(batch):
        while len(reads) < 4 + 2 * 2:  # everybody has come as far as possible
            time.sleep(0.001)
        raise Fault

    pipeline = Pipeline(lambda i: reads.append(i), list, compute, lambda *_: None, batch_size=1, workers=2)
    with pytest.raises(Fault):
        pipeline.run(iter(int, 1))  # without end
    assert not threads()


def test_a_writer_that_fails_when_nothing_follows_is_not_forgotten():
    channel: _Channel[int] = _Channel(1)
    fault = Fault()
    channel.break_off(fault)
    channel.end()
    assert channel.error is fault


@pytest.mark.parametrize("slow", ["read", "compute", "write"])
def test_the_slow_part_waits_for_nobody_and_the_others_for_it(slow):
    def part(name):
        return lambda *given: (time.sleep(0.02 if name == slow else 0), given[0])[1]

    pipeline = Pipeline(part("read"), list, part("compute"), part("write"), batch_size=1, workers=1)
    timing = pipeline.run(range(25))
    shares = timing.shares()
    assert timing.seconds >= 25 * 0.02
    waits_most = {"read": ("starved", "writer_idle"), "compute": ("readers_idle",), "write": ("blocked",)}
    waits_least = {"read": ("blocked", "readers_idle"), "compute": ("starved", "blocked"), "write": ("writer_idle",)}
    assert min(shares[name] for name in waits_most[slow]) > max(shares[name] for name in waits_least[slow])


@pytest.mark.parametrize("name, value", [("batch_size", 0), ("workers", -1)])
def test_a_number_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected at least"):
        Pipeline(int, list, list, print, **{"batch_size": 1, "workers": 1, name: value})
