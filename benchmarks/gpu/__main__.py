"""``python -m benchmarks.gpu tests|speed [FOLDER]``, by benchmarks/run_gpu.sh.

tests: builds, runs every test that needs a GPU, each operation in processes of its own, and the CUDA kernels under
compute-sanitizer; speed: measures everything beside its peers. Each ends within six minutes and leaves results.json,
which holds all failures with their input, and log.txt.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu import plans
from benchmarks.gpu.record import entries, note_interrupted, started
from benchmarks.gpu.runner import Command, Outcome, Runner

JOBS = 6  # operations that are tested at a time: they share one GPU
MOST_RESTARTS = 5
STAND_IN = "tests/benchmarks/stand_in_operation.py"


class Call:
    """One of the two calls: its steps so far, and the file that they are written to after each."""

    def __init__(self, kind: str, folder: Path, dry: bool, total: float) -> None:
        self.kind, self.folder, self.dry = kind, folder, dry
        self.began = time.monotonic()
        self.runner = Runner(plans.ROOT, folder / "log.txt", self.began + total)
        self.outcomes: list[Outcome] = []
        self.report: dict[str, Any] = {"kind": kind, "dry": dry, "versions": {}, "steps": [], "failures": []}

    def step(self, command: Command) -> Outcome:
        outcome = self.runner.run(command)
        self.note(outcome)
        return outcome

    def note(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.write()

    def write(self) -> None:
        self.report["steps"] = [asdict(outcome) for outcome in self.outcomes]
        self.report["seconds"] = round(time.monotonic() - self.began, 1)
        (self.folder / "results.json").write_text(json.dumps(self.report, indent=1) + "\n")

    def prepare(self) -> None:
        if end := self.step(plans.versions(self.dry)).end:
            self.report["versions"] = json.loads(end.splitlines()[-1])
        for command in plans.wheels(self.dry):
            self.step(command)
        if self.kind == "tests" or self.dry or self.step(plans.is_built()).verdict != "passed":
            self.step(plans.build(self.dry))

    def end(self) -> int:
        self.write()
        bad = [outcome.name for outcome in self.outcomes if outcome.failed]
        print(f"{self.report['seconds']:.0f} s in all; {len(self.report['failures'])} failures", end="; ")
        print(f"not passed: {', '.join(bad) or 'nothing'}; everything is in {self.folder}")
        return 1 if bad or self.report["failures"] else 0


def run_tests(call: Call) -> int:
    call.prepare()
    records = call.folder / ".records"
    records.mkdir(exist_ok=True)
    files = [*([plans.ROOT / STAND_IN] if call.dry else []), *plans.operations()]
    commands = [plans.tests_of(file, records / f"{number}.jsonl") for number, file in enumerate(files)]
    call.report["operations"] = {}

    def whole(command: Command) -> tuple[Command, list[Outcome]]:
        return command, run_to_the_end(call.runner, command)

    for command, outcomes in call.runner.map(whole, commands, JOBS):
        found, failures = tally(command, outcomes)
        call.report["operations"][command.name] = found
        call.report["failures"] += failures
        call.note(outcomes[-1])
    sanitizers = plans.sanitized(records)
    if not sanitizers:
        call.note(Outcome("compute-sanitizer", "left out: there is none here", 0.0))
    for command in sanitizers:
        call.report["failures"] += failures_of(command, call.step(command))
    shutil.rmtree(records)
    return call.end()


def run_to_the_end(runner: Runner, command: Command) -> list[Outcome]:
    """Runs a file's tests, in a new process behind each test that a process did not survive."""
    record = command.record
    assert record is not None
    outcomes: list[Outcome] = []
    for _ in range(MOST_RESTARTS):
        before = len(started(record))
        outcomes.append(runner.run(command))
        note_interrupted(record, outcomes[-1])
        ended = outcomes[-1].status in (0, 1, 5) and outcomes[-1].verdict not in ("cut off", "hangs")
        if ended or outcomes[-1].verdict == "no time left" or len(started(record)) == before:
            break
    return outcomes


def tally(command: Command, outcomes: Sequence[Outcome]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Numbers of outcomes, and every failure; a test that its process did not survive is one."""
    assert command.record is not None
    told = [entry for entry in entries(command.record) if "test" in entry]
    found = Counter(entry["outcome"] for entry in told)
    reasons = Counter(entry.get("message", "") for entry in told if entry["outcome"] == "skipped")
    return {
        **{name: found[name] for name in ("passed", "failed", "skipped", "interrupted")},
        "processes": len(outcomes),
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
        "skipped because": dict(reasons),
    }, [entry for entry in told if entry["outcome"] in ("failed", "interrupted")]


def failures_of(command: Command, outcome: Outcome) -> list[dict[str, Any]]:
    """Of a command that is run once."""
    assert command.record is not None
    note_interrupted(command.record, outcome)
    return tally(command, [outcome])[1]


def run_speed(call: Call) -> int:
    call.prepare()
    call.report["benchmarks"] = {}
    written: list[str] = []
    for number in range(len(plans.BENCHMARKS)):
        command = plans.benchmark_of(number, call.folder, call.dry)
        call.report["failures"] += failures_of(command, call.step(command))
        assert command.record is not None
        command.record.unlink(missing_ok=True)
        report = plans.report_of(number, call.folder)
        if report.exists() and report.stat().st_size:
            written.append(str(report))
            measured = json.loads(report.read_text())["benchmarks"]
            call.report["benchmarks"][command.name] = {one["name"]: one["stats"]["median"] for one in measured}
    if written:
        words = (plans.PYTHON, "-m", "benchmarks.table", *written, "--output", str(call.folder / "table.md"))
        call.step(Command("table", words, 30))
    call.step(plans.sweep(call.folder, call.dry))
    return call.end()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/run_gpu.sh", description=__doc__.partition(": builds")[0])
    parser.add_argument("kind", choices=("tests", "speed"))
    parser.add_argument("folder", nargs="?", type=Path, help="of the results [benchmarks/results/gpu-KIND-DATE]")
    parser.add_argument("--dry", action="store_true", help="without a GPU: every step begins, is timed and read")
    parser.add_argument("--seconds", type=float, help=f"for all of it [{plans.TOTAL:.0f}; dry: {plans.SLOWER} times]")
    options = parser.parse_intermixed_args(argv)
    name = f"gpu-{options.kind}-{datetime.now():%Y%m%d-%H%M}"
    folder = (options.folder or plans.ROOT / "benchmarks" / "results" / name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    seconds = options.seconds if options.seconds is not None else plans.TOTAL * (plans.SLOWER if options.dry else 1)
    call = Call(options.kind, folder, options.dry, seconds)
    return (run_tests if options.kind == "tests" else run_speed)(call)


if __name__ == "__main__":
    sys.exit(main())
