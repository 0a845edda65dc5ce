"""Laws of the journal: what is done is not done again, a cut line costs its own items alone, and other settings are
refused."""

import json
import os
import pickle
from pathlib import Path

import pytest
from processes import on_two_processes

from lavit.evaluation.journal import Journal, differences
from lavit.evaluation.runner import evaluate_items

SETTINGS = {"beams": 2, "data": {"caption": "abc"}, "model": None}


def journal(tmp_path, **more):
    return Journal(tmp_path / "progress", {**SETTINGS, **more})


def squares(seen, stop=None):
    def run(batch):
        seen.extend(batch)
        if stop in batch:
            raise KeyboardInterrupt
        return [{"square": n * n} for n in batch]

    return run


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    first, second = [], []
    with pytest.raises(KeyboardInterrupt):
        evaluate_items(range(9), squares(first, stop=5), batch_size=2, kept=journal(tmp_path).task("t"))
    done = evaluate_items(range(9), squares(second), batch_size=2, kept=journal(tmp_path).task("t"))
    assert first == [0, 1, 2, 3, 4, 5] and second == [4, 5, 6, 7, 8]
    assert done == evaluate_items(range(9), squares([]))
    third = []
    assert evaluate_items(range(9), squares(third), kept=journal(tmp_path).task("t")) == done and third == []


def test_what_is_skipped_is_tried_again_and_tasks_are_kept_apart(tmp_path):
    def picky(batch):
        if 1 in batch:
            raise ValueError("one")
        return batch

    assert [i.index for i in evaluate_items(range(3), picky, kept=journal(tmp_path).task("a")).skipped] == [1]
    assert journal(tmp_path).task("a").known() == {0: 0, 2: 2} and journal(tmp_path).task("b").known() == {}
    assert journal(tmp_path).task("a", lambda result: result == 2).known() == {2: 2}


def test_a_batch_is_on_the_disk_when_it_is_added(tmp_path, monkeypatch):
    flushed = []
    real = os.fsync

    def fsync(file):
        flushed.append(os.fstat(file).st_size)
        real(file)

    task = journal(tmp_path).task("t")
    monkeypatch.setattr("lavit.evaluation.journal.os.fsync", fsync)
    task.add([(0, "x")])
    task.add([])
    task.add([(1, "y")])
    (path,) = (tmp_path / "progress").glob("t.*.jsonl")
    assert path.stat().st_size in flushed and path.read_text().index("\n") + 1 in flushed


@pytest.mark.parametrize("tail", [b"[[3, {", b'[[3, {"square": 9}]', b"\x00\xff\xfe", b"[3]\n", b'{"3": 1}\n', b"7\n"])
def test_a_cut_or_damaged_line_costs_its_own_items_alone(tmp_path, tail):
    task = journal(tmp_path).task("t")
    task.add([(0, {"square": 0}), (1, {"square": 1})])
    task.add([(2, {"square": 4})])
    (path,) = (tmp_path / "progress").glob("t.*.jsonl")
    path.write_bytes(path.read_bytes() + tail)
    known = journal(tmp_path).task("t").known()
    assert {i: known[i] for i in (0, 1, 2)} == {i: {"square": i * i} for i in range(3)}
    seen = []
    again = journal(tmp_path).task("t")
    assert evaluate_items(range(4), squares(seen), kept=again).results == {i: {"square": i * i} for i in range(4)}
    assert seen in ([3], [])  # a whole line that lacks only its end may count
    assert journal(tmp_path).task("t").known()[3] == {"square": 9}


def test_other_settings_are_refused_by_name_until_a_restart(tmp_path):
    journal(tmp_path).task("t").add([(0, 1)])
    with pytest.raises(ValueError, match=r'other settings \(beams: 2, now 5; data caption: "abc", now "abd"\).*--rest'):
        journal(tmp_path, beams=5, data={"caption": "abd"})
    assert journal(tmp_path).task("t").known() == {0: 1}  # nothing was touched
    anew = Journal(tmp_path / "progress", {**SETTINGS, "beams": 5}, restart=True)
    assert anew.task("t").known() == {}
    with pytest.raises(ValueError, match="beams: 5, now 2"):
        journal(tmp_path)
    anew.finish()
    assert not (tmp_path / "progress").exists()


def in_a_child(function):
    """What the function gives in another process, as a text."""
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            said = str(function())
        except Exception as error:
            said = str(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with open(read) as file:
        said = file.read()
    os.wait()
    return said


@pytest.mark.parametrize("restart", [False, True])
def test_a_run_that_goes_on_is_not_joined_by_another(tmp_path, restart):
    def other():
        return Journal(tmp_path / "progress", SETTINGS, restart=restart).task("t").known()

    first = journal(tmp_path)
    task = first.task("t")
    task.add([(0, 1)])
    assert "belongs to a run that goes on" in in_a_child(other)
    task.add([(1, 1)])
    assert task.known() == {0: 1, 1: 1}  # nothing was touched
    first.finish()
    assert not (tmp_path / "progress").exists()
    assert in_a_child(other) == "{}"


def test_a_run_that_was_killed_keeps_nobody_out(tmp_path):
    child = os.fork()
    if child == 0:
        held = journal(tmp_path)
        held.task("t").add([(0, 1)])
        os.kill(os.getpid(), 9)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9
    assert journal(tmp_path).task("t").known() == {0: 1}


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "progress").mkdir()
    (tmp_path / "progress" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="no folder of an interrupted run"):
        journal(tmp_path)
    (tmp_path / "progress" / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="settings.json is damaged"):
        journal(tmp_path)
    assert (tmp_path / "progress" / "mine.txt").exists()
    with pytest.raises(ValueError, match="cannot be used"):
        Journal(tmp_path / "none" / "progress", SETTINGS)


def test_differences_are_told_in_words():
    assert differences({"a": 1, "b": {"c": [1]}}, {"a": 1, "b": {"c": [2]}, "d": None}) == ["b c: [1], now [2]"]
    assert differences({"a": "x" * 90}, {}) == [f'a: "{"x" * 36}..., now null']


def run_two_ranks(rank: int, folder: str) -> None:
    kept, seen = Journal(f"{folder}/progress", SETTINGS).task("t"), []
    done = evaluate_items(range(9), squares(seen), batch_size=2, kept=kept)
    try:
        Journal(f"{folder}/progress", {**SETTINGS, "beams": 3})
        refused = ""
    except ValueError as error:
        refused = str(error)
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps((seen, list(done.results.items()), refused)))


def test_two_processes_share_what_one_has_left(tmp_path):
    journal(tmp_path).task("t").add([(i, {"square": i * i}) for i in (0, 3, 4)])
    on_two_processes(run_two_ranks, tmp_path)
    found = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    assert [seen for seen, _, _ in found] == [[1, 5, 7], [2, 6, 8]]
    for _, results, refused in found:
        assert results == [(i, {"square": i * i}) for i in range(9)]
        assert "beams: 2, now 3" in refused
    lines = [line for path in (tmp_path / "progress").glob("*.jsonl") for line in path.read_text().splitlines()]
    numbers = sorted(number for line in lines for number, _ in json.loads(line))
    assert numbers == list(range(9))
