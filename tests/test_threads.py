"""How many threads the commands compute on, and how these wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from lavit import threads
from lavit.threads import on as on_threads


@pytest.fixture(autouse=True)
def nothing_set_here(monkeypatch):
    monkeypatch.setattr(threads, "_set_here", set())


@pytest.fixture
def eight(monkeypatch):
    """A machine of 16 CPUs, of which the process may use 8, and torch that would take them all."""
    monkeypatch.setattr(threads, "cpus", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(threads, "quota", lambda root=None: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)


def system(root, groups: str, **files: str):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "share"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000", "cpu.max": "400000 100000"}, 1.5),
        ("0::/on/the/host\n", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/../other\n", {"cpu.max": "300000 100000"}, 3.0),
        ("4:memory:/x\n2:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000",
                                             "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, 2.5),
        ("1:cpu:/gone\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("1:cpu:/gone\n0::/\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.0),
        ("", {}, None),
        ("nonsense", {"cpu.max": "one two"}, None),
    ],
)  # fmt: skip
def test_the_quota_is_the_least_of_the_groups_of_both_kinds(tmp_path, groups, files, share):
    assert threads.quota(system(tmp_path, groups, **files)) == share


def test_no_such_files_are_no_quota(tmp_path):
    assert threads.quota(tmp_path) is None


@pytest.mark.parametrize(
    ("share", "environ", "found"),
    [
        (None, {}, (8, "the process may run on 8 of 16", False)),
        (2.0, {}, (2, "quota 2.0", True)),
        (2.9, {}, (2, "quota 2.9", True)),
        (0.5, {}, (1, "quota 0.5", True)),
        (64.0, {}, (8, "the process may run on 8 of 16", False)),
        (None, {"LOCAL_WORLD_SIZE": "4"}, (2, "4 processes share them", True)),
        (4.0, {"LOCAL_WORLD_SIZE": "2"}, (2, "2 processes share them, quota 4.0", True)),
        (4.0, {"LOCAL_WORLD_SIZE": "half"}, (4, "quota 4.0", True)),
    ],
)
def test_cpus_are_those_of_the_process_its_quota_and_its_siblings(eight, monkeypatch, share, environ, found):
    monkeypatch.setattr(threads, "quota", lambda root=None: share)
    assert threads.usable(environ) == found


def test_words_then_the_environment_then_the_run_then_the_cpus(eight):
    told = {"OMP_NUM_THREADS": "3,2"}
    assert str(threads.choose(5, 4, environ=told)) == "5 threads of 8 CPUs: --threads"
    assert threads.choose(None, 4, environ=told).why == "OMP_NUM_THREADS (not 4, as the run began)"
    assert str(threads.choose(None, 3, environ=told)) == "3 threads of 8 CPUs: OMP_NUM_THREADS"
    assert str(threads.choose(None, 4, environ={})) == "4 threads of 8 CPUs: as the run began"
    assert str(threads.choose(environ={})) == "8 threads of 8 CPUs: the process may run on 8 of 16"
    fewer = threads.choose(None, 12, environ={})
    assert fewer.threads == 8 and "(not 12, as the run began: sums may round otherwise)" in fewer.why
    assert threads.choose(None, 4, of="the settings say", environ={}).why == "as the settings say"
    for wrong in ((0, None), (None, 0)):
        with pytest.raises(ValueError, match="threads: expected a number >= 1, got 0"):
            threads.choose(*wrong, environ={})


def test_torchs_own_number_is_not_exceeded(eight, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert str(threads.choose(environ={})) == "4 threads of 8 CPUs: torch's own number"


@pytest.mark.parametrize(
    ("rates", "number"),
    [
        ({1: 10.0, 2: 19.0, 4: 36.0, 8: 65.0}, 8),
        ({1: 10.0, 2: 14.0, 4: 9.0, 8: 5.0}, 2),
        ({1: 10.0, 2: 10.0, 4: 9.9, 8: 9.0}, 8),  # not clearly faster
        ({1: 40.0, 2: 10.0, 4: 9.9, 8: 9.0}, 1),
    ],
)
def test_fewer_threads_are_taken_where_they_are_measured_faster(eight, monkeypatch, rates, number):
    monkeypatch.setattr(threads, "rows_a_second", lambda numbers: {n: rates[n] for n in numbers})
    choice = threads.choose(measure=True, environ={})
    assert choice.threads == number
    assert ("measured" in choice.why) == (number != 8)
    assert threads.choose(measure=True, environ={"OMP_NUM_THREADS": "8"}).threads == 8
    # Beside others, who would measure other numbers.
    assert threads.choose(measure=True, environ={"WORLD_SIZE": "2"}).threads == 8


def test_rates_are_of_rows_and_time_and_torchs_threads_are_as_before():
    ticks = iter(range(10**6))
    with on_threads(1):
        rates = threads.rows_a_second([1, 2], seconds=10, rounds=2, clock=lambda: next(ticks))
        assert torch.get_num_threads() == 1
    # One tick between two looks at the clock: 9 products in 10 ticks, of 128 rows a thread.
    assert rates == {1: 128 * 9 / 10, 2: 256 * 9 / 10}


def test_what_the_user_has_set_stays_and_the_rest_is_set_before_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threads, "usable", lambda environ: (2, "quota 2.0", True))
    for name in threads.WAITING:
        threads.prepare(environ := {name: "7", "OMP_NUM_THREADS": "5"})
        assert environ == {name: "7", "OMP_NUM_THREADS": "5"}
        assert threads.given(name, environ) == "7" and threads.given("OMP_NUM_THREADS", environ) == "5"
    threads.prepare(environ := {})
    assert environ == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": "2"}
    assert threads.given("OMP_NUM_THREADS", environ) is None
    monkeypatch.setattr(threads, "usable", lambda environ: (2, "all that there are", False))
    for load, turns in ((0.5, "30000"), (1.5, "1000")):
        monkeypatch.setattr(threads, "cpus", lambda: 2)
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        threads.prepare(environ := {})
        assert environ == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": turns}


def test_nothing_is_set_where_torch_is_loaded():
    threads.prepare(environ := {})
    assert environ == {}


def test_an_import_changes_nothing_and_a_command_has_threads_sleep_soon():
    program = (
        "import os; before = dict(os.environ); import lavit, lavit.threads, lavit.cli, lavit.training.engine.command;"
        "assert dict(os.environ) == before; lavit.cli.main([]);"
        "print(os.environ['OMP_WAIT_POLICY'], os.environ['GOMP_SPINCOUNT'])"
    )
    environ = {name: value for name, value in os.environ.items() if name not in threads.WAITING}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout in ("PASSIVE 1000\n", "PASSIVE 30000\n")
