"""A pytest plugin that writes each test's outcome as soon as it is known, and of a failure what is needed to see why.

``LAVIT_RECORD=FILE pytest -p benchmarks.gpu.record ...`` appends lines of JSON to FILE: {"started": id} when a test
begins and {"test": id, "outcome", "seconds", ...} when it has ended. Tests that FILE says were started before are left
out: what a crash or a lost context has interrupted goes on behind the test that it was.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.runner import RECORD, Outcome

LOST = ("illegal memory access", "device-side assert", "misaligned address", "unspecified launch failure")
"""What CUDA says when no later call of the process can succeed."""
LONGEST = 1500
"""Characters of a message, and of a value 300: a file of failures is to be read at once."""
MOST_VALUES = 12


def _file() -> Path:
    return Path(os.environ[RECORD])


def started(file: Path) -> list[str]:
    return [entry["started"] for entry in entries(file) if "started" in entry]


def entries(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]


def note_interrupted(file: Path, outcome: Outcome) -> None:
    """Adds what became of the test that the process was at when it ended, if it did not end it."""
    told = {entry["test"] for entry in entries(file) if "test" in entry}
    for test in started(file):
        if test not in told:
            message = f"the process did not survive it: {outcome.verdict}, status {outcome.status}\n{outcome.end}"
            _write({"test": test, "outcome": "interrupted", "message": message[:LONGEST]}, file)


def _write(entry: dict[str, Any], file: Path | None = None) -> None:
    with open(file or _file(), "a") as opened:
        opened.write(json.dumps(entry) + "\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    before = set(started(_file()))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in before])
    items[:] = [item for item in items if item.nodeid not in before]


def pytest_runtest_logstart(nodeid: str) -> None:
    _write({"started": nodeid})


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = (yield).get_result()
    if call.when == "call" or report.outcome != "passed":
        entry: dict[str, Any] = {"test": item.nodeid, "outcome": report.outcome, "seconds": round(call.duration, 3)}
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            entry["message"] = str(report.longrepr[2])[:LONGEST]
        elif report.failed and call.excinfo is not None:
            message = f"{call.excinfo.typename}: {call.excinfo.value}"
            trace = call.excinfo.traceback
            frames = [frame for frame in trace if frame.path == item.path] or trace[-1:]
            where = [f"{Path(frame.path).name}:{frame.lineno + 1}" for frame in (*frames, trace[-1])]
            entry |= {"when": call.when, "message": message[:LONGEST], "where": where}
            entry |= {"input": _input(item), "values": _values(frames[-1].frame.f_locals)}
            if any(words in message for words in LOST):
                entry["lost"] = True
                item.session.shouldstop = "the CUDA context is lost"
        _write(entry)


def _input(item: pytest.Item) -> dict[str, str]:
    spec = getattr(item, "callspec", None)
    return {name: told(value) for name, value in spec.params.items()} if spec is not None else {}


def _values(variables: dict[str, Any]) -> dict[str, str]:
    """The local variables of the innermost frame in the test's own file."""
    found: dict[str, str] = {}
    for name, value in variables.items():
        if not name.startswith(("@", "_")) and not callable(value) and len(found) < MOST_VALUES:
            found[name] = told(value)
    return found


def told(value: Any) -> str:
    """A value in at most 300 characters; of a tensor its kind, its range and its first numbers."""
    try:
        if isinstance(value, torch.Tensor):
            return _tensor(value)[:300]
        return repr(value)[:300]
    except Exception as problem:  # a tensor of a lost context cannot be read
        return f"{type(value).__name__}, unreadable: {type(problem).__name__}"


def _tensor(value: torch.Tensor) -> str:
    kind = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
    if not value.numel():
        return kind
    flat = value.detach().flatten().cpu()
    first = ", ".join(f"{number:.6g}" for number in flat[:8].double().tolist())
    if not flat.is_floating_point():
        return f"{kind}, {int(flat.min())} to {int(flat.max())}: {first}"
    finite = flat[flat.isfinite()].double()
    spread = f", {float(finite.min()):.6g} to {float(finite.max()):.6g}" if len(finite) else ""
    others = f", {len(flat) - len(finite)} not finite" if len(finite) < len(flat) else ""
    return f"{kind}{spread}{others}: {first}"
