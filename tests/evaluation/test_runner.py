"""Laws of the evaluation loop: every item exactly once, whatever the number of processes; a bad one costs no other; and
a failure reaches every process."""

import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import on_two_processes

from lavit.data.images import ImageError
from lavit.evaluation.runner import Evaluated, Skipped, evaluate_items


class Files:
    """Items of which some cannot be read."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken = count, broken
        self.taken: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        self.taken.append(index)
        if index in self.broken:
            raise ImageError(f"{index}.jpg: the file is empty")
        return index

    def name(self, index: int) -> str:
        return f"{index}.jpg"


def squares(numbers: list[int]) -> list[int]:
    if 6 in numbers:
        raise ValueError("six is not wanted")
    return [number**2 for number in numbers]


@pytest.mark.parametrize("workers", [0, 1, 3, None])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_bad_items_are_named_and_the_rest_goes_on(batch_size, workers):
    files, seen = Files(11, broken=(2, 3, 10)), []
    options = {"batch_size": batch_size, "workers": workers}
    done = evaluate_items(files, squares, progress=lambda *counts: seen.append(counts), **options)
    assert list(done.results.items()) == [(i, i * i) for i in (0, 1, 4, 5, 7, 8, 9)]
    assert done.skipped == [
        Skipped(2, "2.jpg", "2.jpg: the file is empty"),
        Skipped(3, "3.jpg", "3.jpg: the file is empty"),
        Skipped(6, "6.jpg", "six is not wanted"),
        Skipped(10, "10.jpg", "10.jpg: the file is empty"),
    ]
    assert sorted(files.taken) == list(range(11)) and seen[-1] == (11, 11)
    assert done.as_dict()["evaluated"] == 7 and done.as_dict()["skipped"][2]["index"] == 6


def test_items_are_taken_ahead_of_their_batch_and_no_further_than_a_bound():
    files, deadline = Files(40), time.monotonic() + 60

    def first_waits_for_the_third_batch(numbers: list[int]) -> list[int]:
        if numbers[0] == 0:
            while len(files.taken) < 6 and time.monotonic() < deadline:
                time.sleep(0.005)
            assert len(files.taken) >= 6
        assert len(files.taken) <= numbers[-1] + 1 + 2 + 2 * 2
        return numbers

    assert len(evaluate_items(files, first_waits_for_the_third_batch, batch_size=2, workers=2).results) == 40


def test_what_ends_the_whole_ends_the_threads_that_take_items():
    class Lost(Files):
        def __getitem__(self, index: int) -> int:
            return super().__getitem__(index) if index != 5 else 1 // 0

    files = Lost(1000)
    with pytest.raises(ZeroDivisionError):
        evaluate_items(files, squares, batch_size=2, workers=2)
    assert len(files.taken) < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lavit-read")]


def test_any_number_of_items_may_be_bad_or_none_there():
    assert evaluate_items([], squares) == Evaluated({}, [])
    done = evaluate_items([6, 6], squares, batch_size=2)
    assert done.results == {} and [item.name for item in done.skipped] == ["item 0", "item 1"]
    assert evaluate_items([1], squares, name=str).results == {0: 1}


def test_a_failure_that_is_no_items_fault_is_raised():
    with pytest.raises(ZeroDivisionError):
        evaluate_items([1, 2], lambda numbers: [1 // 0])
    with pytest.raises(KeyError):
        evaluate_items([1], lambda numbers: [{}["a"]])
    assert evaluate_items([1], lambda numbers: [{}["a"]], bad=(KeyError,)).skipped[0].reason == "'a'"
    with pytest.raises(RuntimeError, match="function: expected 2 results.*got 1"):
        evaluate_items([1, 2], lambda numbers: numbers[:1], batch_size=2)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        evaluate_items([1], lambda numbers: [lambda: 0])
    with pytest.raises(ValueError, match="batch_size.*0"):
        evaluate_items([1], squares, batch_size=0)


def record(call: Callable[[], Evaluated[Any]]) -> Any:
    try:
        return list(call().results.items())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def run_two_ranks(rank: int, folder: str) -> None:

    def one_fails(numbers: list[int]) -> list[int]:
        if 3 in numbers:
            raise ZeroDivisionError("three")
        return numbers

    files = Files(7, broken=(4, 5))
    done = evaluate_items(files, squares, batch_size=2, workers=None)
    found = {
        "results": list(done.results.items()),
        "skipped": [item.index for item in done.skipped],
        "taken": sorted(files.taken),
        "fewer items than processes": record(lambda: evaluate_items([5], squares)),
        "one fails": record(lambda: evaluate_items(range(7), one_fails)),
        "one does not pickle": record(lambda: evaluate_items(range(7), lambda n: [lambda: 0] if rank else n)),
        "other lengths": record(lambda: evaluate_items(range(3 + rank), squares)),
        "afterwards": record(lambda: evaluate_items(range(3), squares)),
    }
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(found))


def test_two_processes_count_every_item_once_and_share_failures(tmp_path):
    on_two_processes(run_two_ranks, tmp_path)
    first, second = (pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2))
    # An odd number of items: a sampler that pads would have item 0 twice.
    assert first["taken"] == [0, 2, 4, 6] and second["taken"] == [1, 3, 5]
    for found in (first, second):
        assert found["results"] == [(i, i * i) for i in (0, 1, 2, 3)]
        assert found["skipped"] == [4, 5, 6]
        assert found["fewer items than processes"] == [(0, 25)]
        assert "expected the same on every process, got [3, 4] items" in found["other lengths"]
        assert found["afterwards"] == [(0, 0), (1, 1), (2, 4)]
    assert second["one fails"] == "ZeroDivisionError: three"
    assert first["one fails"] == "RuntimeError: process 1 failed: ZeroDivisionError: three"
    assert first["one does not pickle"].startswith("RuntimeError: process 1 failed: ")
    assert "process 1" not in second["one does not pickle"]
