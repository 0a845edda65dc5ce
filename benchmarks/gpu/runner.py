"""Commands in processes of their own, each with a time limit, none of which can stop the others."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

RECORD = "LAVIT_RECORD"
"""The environment's name for a command's record."""
LEAST = 5.0
"""Seconds that must be left for a command to be begun."""
GRACE = 8.0
"""Seconds between the request to end and the end: pytest then writes what it has."""


@dataclass(frozen=True)
class Command:
    """name: for people. limit: seconds. record: where `benchmarks.gpu.record` writes. quiet: seconds without a change
    of the record, once it has changed, after which the command counts as hanging. statuses: exit statuses that mean
    something else than failure, and what.
    """

    name: str
    words: Sequence[str]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)
    record: Path | None = None
    quiet: float | None = None
    statuses: Mapping[int, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """verdict: "passed", "failed", "cut off" (its limit), "hangs" (its quiet), "no time left", or one of `statuses`."""

    name: str
    verdict: str
    seconds: float
    status: int | None = None
    end: str = ""

    @property
    def failed(self) -> bool:
        return self.verdict in ("failed", "cut off", "hangs", "no time left")


class Runner:
    """Runs commands in `root` until `deadline` (of time.monotonic); their words go to `log`, one after the other.

    say: gets a line when a command begins and when it ends. To be made in the main thread: where this process was
    started in the background, which has it ignore SIGINT, its children would ignore the request to end as well.
    """

    def __init__(self, root: Path, log: Path, deadline: float, say: Callable[[str], None] = print) -> None:
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.root, self.log, self.deadline, self.say = root, log, deadline, say
        self._lock = threading.Lock()
        log.write_text("")

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, command: Command) -> Outcome:
        if self.left < LEAST:
            return self._told(Outcome(command.name, "no time left", 0.0))
        limit = min(command.limit, self.left)
        self.say(f"--- {command.name} (at most {limit:.0f} s)")
        begun = time.monotonic()
        environment = {**os.environ, **command.environment}
        if command.record is not None:
            environment[RECORD] = str(command.record)
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command.words,
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            verdict = self._wait(process, command, begun + limit)
            output.seek(0)
            text = output.read().decode(errors="replace")
        if verdict is None:
            verdict = "passed" if process.returncode == 0 else command.statuses.get(process.returncode, "failed")
        end = "\n".join(text.strip().splitlines()[-15:])
        outcome = Outcome(command.name, verdict, round(time.monotonic() - begun, 1), process.returncode, end)
        with self._lock, open(self.log, "a") as log:
            log.write(f"=== {command.name}: {' '.join(command.words)}\n{text}\n")
        return self._told(outcome)

    @staticmethod
    def map(work: Callable[[Command], Result], commands: Sequence[Command], jobs: int) -> Iterator[Result]:
        """What `work` returns of each, in order, several at a time."""
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            yield from pool.map(work, commands)

    def _told(self, outcome: Outcome) -> Outcome:
        status = f", status {outcome.status}" if outcome.verdict == "failed" else ""
        self.say(f"=== {outcome.name}: {outcome.verdict}{status}, {outcome.seconds:.0f} s")
        return outcome

    def _wait(self, process: subprocess.Popen[bytes], command: Command, until: float) -> str | None:
        """None where it ended by itself."""
        changed, size = until, _size(command.record)  # what comes before the first test takes as long as it takes
        while True:
            try:
                process.wait(timeout=0.2)
                return None
            except subprocess.TimeoutExpired:
                pass
            now = time.monotonic()
            if (found := _size(command.record)) != size:
                changed, size = now, found
            verdict = None
            if now > until:
                verdict = "cut off"
            elif command.quiet is not None and now - changed > command.quiet:
                verdict = "hangs"
            if verdict is not None:
                _end(process)
                return verdict


def _size(file: Path | None) -> int:
    return file.stat().st_size if file is not None and file.exists() else 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks the whole session to end, then makes it."""
    for number, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=patience)
            return
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
