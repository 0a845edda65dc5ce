"""The two calls for a machine with a GPU, tried without one: nothing that a test or a step does stops the others."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import limits, table
from benchmarks.gpu import plans
from benchmarks.gpu.__main__ import STAND_IN, Call, main, run_speed, run_to_the_end, tally
from benchmarks.gpu.record import MOST_VALUES, told
from benchmarks.gpu.runner import Command, Runner

# What is made faster, or made at all, on the CPU alone.
OF_LLAMA = ("add_rms_norm", "swiglu", "rotary_embedding", "decode_attention")
ON_CPU_ALONE = {f"kernels/bench_{name}.py" for name in ("bin_pack", "draw_id", *OF_LLAMA)}


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a process that was started in the background
    yield Runner(plans.ROOT, tmp_path / "log.txt", time.monotonic() + 200, say=lambda line: None)
    signal.signal(signal.SIGINT, before)


def test_failing_crashing_hanging_tests_and_a_lost_context_leave_the_others_their_turn(runner, tmp_path):
    record = tmp_path / "record.jsonl"
    command = plans.tests_of(plans.ROOT / STAND_IN, record)
    outcomes = run_to_the_end(runner, Command(**{**vars(command), "quiet": 5.0}))
    found, failures = tally(command, outcomes)
    numbers = {name: found[name] for name in ("passed", "failed", "skipped", "interrupted", "processes")}
    assert numbers == {"passed": 4, "failed": 2, "skipped": 1, "interrupted": 2, "processes": 4}
    assert found["skipped because"] == {"Skipped: needs two devices": 1}
    by_name = {entry["test"].split("::")[1].split("[")[0]: entry for entry in failures}
    assert set(by_name) == {"test_fails_with_its_input", "test_loses_the_context", "test_crashes", "test_hangs"}
    failed = by_name["test_fails_with_its_input"]
    assert failed["input"] == {"rows": "3"} and "not close" in failed["message"]
    assert failed["values"]["found"] == "float32 [3] on cpu, 1 to 2, 1 not finite: 1, nan, 2"
    assert failed["where"][0].startswith("stand_in_operation.py:")
    assert "status -6" in by_name["test_crashes"]["message"]
    assert "hangs" in by_name["test_hangs"]["message"]


def test_a_step_that_takes_too_long_ends_with_its_children(runner, tmp_path):
    child = tmp_path / "child"
    code = f"import subprocess, sys; subprocess.run(['sh', '-c', 'sleep 4; touch {child}'])"
    begun = time.monotonic()
    outcome = runner.run(Command("slow", (sys.executable, "-c", code), 1.0))
    assert outcome.verdict == "cut off" and outcome.failed and time.monotonic() - begun < 4
    time.sleep(max(0.0, begun + 4.5 - time.monotonic()))
    assert not child.exists()


def test_nothing_is_begun_when_the_time_is_over(tmp_path):
    runner = Runner(tmp_path, tmp_path / "log.txt", time.monotonic(), say=lambda line: None)
    assert runner.run(Command("late", ("false",), 10)).verdict == "no time left"


def test_other_statuses_are_what_they_are_said_to_be(runner):
    command = Command("none", (sys.executable, "-c", "raise SystemExit(5)"), 60, statuses=plans.NOTHING)
    outcome = runner.run(command)
    assert outcome.verdict == "nothing to run" and not outcome.failed
    assert runner.run(Command("bad", (sys.executable, "-c", "raise SystemExit(4)"), 60)).verdict == "failed"


def test_plans_name_what_is_there():
    for _, limit, files in plans.BENCHMARKS:
        assert limit <= 60 and all((plans.ROOT / "benchmarks" / file).is_file() for file in files)
    planned = {file for _, _, files in plans.BENCHMARKS for file in files}
    there = {str(file.relative_to(plans.ROOT / "benchmarks")) for file in plans.ROOT.glob("benchmarks/*/bench_*.py")}
    assert there - planned == ON_CPU_ALONE
    names = [file.name for file in plans.operations()]
    assert {f"test_{name}.py" for name in ("pack", "nearest_code_triton", "gumbel_select")} <= set(names)
    assert "stand_in_operation.py" not in names


def test_wheels_for_torch_and_triton_are_left_out(tmp_path, monkeypatch):
    for name in ("torch-2.11-x.whl", "triton-3.6-x.whl", "pytorch_triton-3.6.whl", "diffusers-0.3-py3.whl", "a.txt"):
        (tmp_path / name).touch()
    monkeypatch.setenv("WHEELS", str(tmp_path))
    assert [Path(name).name for name in plans.wheels_to_install()] == ["diffusers-0.3-py3.whl"]


def test_benchmarks_write_their_files_one_by_one_and_a_failing_one_is_told(tmp_path, monkeypatch):
    (tmp_path / "test_right.py").write_text(
        "import torch\nfrom benchmarks.timing import measure\n"
        "def test_sum(benchmark):\n"
        "    x = torch.ones(10)\n"
        "    measure(benchmark, x.device, 'sum', x.sum, implementation='torch', baseline=True, bytes_moved=40)\n"
    )
    (tmp_path / "test_wrong.py").write_text(
        "import torch\nfrom benchmarks.timing import measure\n"
        "def test_sum(benchmark):\n"
        "    measure(benchmark, torch.device('cpu'), 'sum', lambda: None, passed=False, parity='7 for 8')\n"
    )
    above = Path(*[".."] * len((plans.ROOT / "benchmarks").parts[1:]), *tmp_path.parts[1:])
    chosen = tuple((name, 60.0, (str(above / f"test_{name}.py"),)) for name in ("right", "wrong"))
    monkeypatch.setattr(plans, "BENCHMARKS", chosen)
    monkeypatch.setattr(plans, "sweep", lambda folder, dry: Command("sweep", ("true",), 10))
    monkeypatch.setattr(plans, "versions", lambda dry: Command("versions", ("true",), 10))
    monkeypatch.setattr(plans, "build", lambda dry: Command("build", ("true",), 10))
    call = Call("speed", tmp_path, dry=True, total=100)
    assert run_speed(call) == 1
    report = json.loads((tmp_path / "results.json").read_text())
    assert list(report["benchmarks"]["right"]) == ["test_sum"]
    assert "7 for 8" in report["failures"][0]["message"] and len(report["failures"]) == 1
    assert [step["verdict"] for step in report["steps"]] == ["passed", "passed", "passed", "failed", "passed", "passed"]
    assert "| torch |" in (tmp_path / "table.md").read_text()


def test_tables_of_several_files_are_one(tmp_path, capsys):
    stats = {"median": 1.0, "q1": 1.0, "q3": 1.0}
    for name in "ab":
        extra = {"implementation": name, "limit_reached": 0.634, "limit": "memory", "gigabytes_per_second": 7.0}
        one = {"group": name, "name": name, "param": None, "stats": stats, "extra_info": extra}
        report = {"machine_info": {"device": "X"}, "commit_info": {}, "benchmarks": [one]}
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    assert table.main([str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--output", str(tmp_path / "t.md")]) == 0
    text = capsys.readouterr().out
    assert "**a**" in text and "**b**" in text and "7 GB/s, 63.4 % of the memory limit" in text
    assert (tmp_path / "t.md").read_text() == text


def test_the_share_of_a_limit_is_that_of_the_nearer_one():
    bytes_moved, operations = limits.LIMITS["NVIDIA H200"]
    facts = {"bytes_moved": bytes_moved, "operations": operations / 2}
    assert limits.reached("NVIDIA H200", 2.0, facts) == (0.5, "memory")
    assert limits.reached("NVIDIA H200", 2.0, {"operations": operations}) == (0.5, "bf16")
    assert limits.reached("another", 2.0, facts) is None and limits.reached("NVIDIA H200", 2.0, {}) is None


def test_values_are_told_in_few_characters():
    assert len(told("x" * 1000)) == 300 and MOST_VALUES < 20


WORDS = ("speed --dry FOLDER", "--dry speed FOLDER", "speed FOLDER --dry")


@pytest.mark.parametrize("words", [words.split() for words in WORDS], ids=WORDS)
def test_options_may_stand_anywhere(tmp_path, monkeypatch, words):
    called = []
    monkeypatch.setattr("benchmarks.gpu.__main__.run_speed", lambda call: called.append(call) or 0)
    assert main([str(tmp_path / "results") if word == "FOLDER" else word for word in words]) == 0
    assert called[0].folder == tmp_path / "results" and called[0].dry
