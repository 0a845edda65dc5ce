"""How many threads torch computes on, and how they wait: for the commands. To import this changes nothing.

A thread that waits for the others of its group spins by default, for milliseconds, which on a machine shared with other
work takes the time that these others need. `prepare` has it sleep soon, as long as torch is not loaded yet, and keeps
torch from starting more threads than the process may use. `choose` says how many a training computes on.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

NUMBER = "OMP_NUM_THREADS"
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Any of these says how threads of OpenMP wait: of both, of GNU's library, of LLVM's and Intel's."""
TURNS = {"alone": "30000", "shared": "1000"}
"""Of the loop in which a thread waits before it sleeps, as GOMP_SPINCOUNT: a tenth of what GNU's library has otherwise,
which small models on a machine of their own are as fast with, and what it has where threads are more than CPUs."""
GAIN = 1.15
"""So much faster fewer threads must be to be taken: what is measured in a fraction of a second is not exact."""
SECONDS, ROUNDS = 0.04, 3  # for each number of threads, and how often

_set_here: set[str] = set()


@dataclass(frozen=True)
class Choice:
    """threads: how many. cpus: of how many of this process. why: in a few words."""

    threads: int
    cpus: int
    why: str

    def __str__(self) -> str:
        of = f"{self.cpus} CPU{'s' * (self.cpus != 1)}"
        return f"{self.threads} thread{'s' * (self.threads != 1)} of {of}: {self.why}"


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Before torch is loaded, says in the environment how threads wait and how many there are at most, where the user
    has not. Where torch is there already nothing is changed."""
    if "torch" in sys.modules:
        return
    most, _, limited = usable(environ)
    if not any(environ.get(name) for name in WAITING):
        how = {WAITING[0]: "PASSIVE", WAITING[1]: TURNS["shared" if limited or busy() else "alone"]}
        environ.update(how)
        _set_here.update(how)
    if limited and not environ.get(NUMBER):
        environ[NUMBER] = str(most)
        _set_here.add(NUMBER)


def given(name: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """What the user has set a variable to; None where it is not set, or by `prepare`."""
    return None if name in _set_here else environ.get(name) or None


def cpus() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy() -> bool:
    """Whether the machine has had work for half of these CPUs in the last minute."""
    try:
        return os.getloadavg()[0] > cpus() / 2
    except OSError:
        return False


def usable(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> tuple[int, str, bool]:
    """How many CPUs' time this process may take, why so many, and whether that is less than all it may run on."""
    here = cpus()
    most, why = here, "all that there are"
    if here < (os.cpu_count() or here):
        why = f"the process may run on {here} of {os.cpu_count()}"
    share = quota(root)
    if share is not None and share < here:
        most, why = max(1, int(share)), f"quota {share:.1f}"
    with suppress(ValueError):
        beside = int(environ.get("LOCAL_WORLD_SIZE", "1"))
        if beside > 1:
            most, why = max(1, most // beside), f"{beside} processes share them" + (f", {why}" if most < here else "")
    return most, why, most < here


def quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that the control groups of this process leave it (cgroup v2 and v1); None for no limit.

    root: where the file systems of the system are.
    """
    found: list[float] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        top = root / "sys/fs/cgroup"
        if controllers == "":
            tops = [top, top / "unified"]
        elif "cpu" in controllers.split(","):
            tops = [top / controllers, top / "cpu", top / "cpu,cpuacct"]
        else:
            continue
        # A limit above holds too. Inside a container the path may be the host's, of which nothing is to be seen.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for place in (t.joinpath(*parts[:depth]) for t in tops for depth in range(len(parts) + 1)):
            words = _text(place / "cpu.max").split() or [
                _text(place / "cpu.cfs_quota_us").strip(),
                _text(place / "cpu.cfs_period_us").strip(),
            ]
            with suppress(ValueError, ZeroDivisionError):  # "max", or no file
                if (share := int(words[0]) / int(words[1])) > 0:  # -1: no limit
                    found.append(share)
    return min(found, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def choose(
    asked: int | None = None,
    before: int | None = None,
    *,
    of: str = "the run began",
    measure: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Choice:
    """How many threads torch is to compute on.

    asked: by the command's own words. before: of the run that goes on; sums of another number round otherwise. of: who
    says that number, "the settings say" where a file of settings does. measure: try whether fewer are faster, as on a
    machine that has more to do than it can, for a fraction of a second; not in a process that torchrun has started
    beside others, since each would measure what the others do, and choose another number.
    Precedence: asked, OMP_NUM_THREADS, before, the CPUs. Raises ValueError for a number below 1.
    """
    here = cpus()
    for number in (asked, before):
        if number is not None and number < 1:
            raise ValueError(f"threads: expected a number >= 1, got {number}")
    if asked is not None:
        return Choice(asked, here, "--threads")
    told = (given(NUMBER, environ) or "").partition(",")[0].strip()
    if told.isdecimal() and int(told) > 0:
        other = before is not None and before != int(told)
        return Choice(int(told), here, NUMBER + (f" (not {before}, as {of})" if other else ""))
    most, why, _ = usable(environ)
    if before is not None and before <= most:
        return Choice(before, here, f"as {of}")
    import torch

    if (own := torch.get_num_threads()) < most:  # as many as there are cores, where these have two CPUs each
        most, why = own, "torch's own number"
    if before is not None:
        return Choice(most, here, f"{why} (not {before}, as {of}: sums may round otherwise)")
    if measure and most > 1 and environ.get("WORLD_SIZE", "1") == "1":
        rates = rows_a_second(sorted({most, -(-most // 2), -(-most // 4), 1}))
        best = max(rates, key=lambda number: rates[number])
        if best < most and rates[best] > GAIN * rates[most]:
            times = rates[best] / rates[most]
            return Choice(best, here, f"measured {times:.1f} times as fast as {most}{_load()}")
    return Choice(most, here, why)


def _load() -> str:
    try:
        return f", load average {os.getloadavg()[0]:.1f}"
    except OSError:
        return ""


def rows_a_second(
    numbers: Sequence[int], seconds: float = SECONDS, rounds: int = ROUNDS, clock: Callable[[], float] | None = None
) -> dict[int, float]:
    """Rows a second that small layers compute on each of these numbers of threads, by turns; each thread has as much
    work whatever their number. Takes numbers x rounds x seconds; torch's number is put back."""
    import torch
    from torch.nn import functional as F

    clock = clock or time.perf_counter
    weight = torch.full((256, 256), 1 / 256)
    rows, took = dict.fromkeys(numbers, 0), dict.fromkeys(numbers, 0.0)
    with on(torch.get_num_threads()), torch.inference_mode():
        for turn in range(rounds + 1):
            for number in numbers:
                torch.set_num_threads(number)
                values = torch.full((128 * number, 256), 0.5)
                F.gelu(values @ weight)  # starts the threads
                began = clock()
                while (passed := clock() - began) < (seconds if turn else 0):
                    F.gelu(values @ weight)
                    rows[number] += len(values)
                took[number] += passed if turn else 0
    return {number: rows[number] / max(took[number], 1e-9) for number in numbers}


@contextmanager
def on(number: int) -> Iterator[None]:
    """Torch on so many threads; on as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
