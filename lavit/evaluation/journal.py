"""What an evaluation has done so far, on the disk, so that an interrupted one goes on where it was.

A folder: settings.json, what the results depend on, and of each task and process a file of lines, each a batch's
results by the item's number. A line is written at once and flushed to the disk; one that a crash has cut is passed
over, and its items are done again.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lavit.data.atomic_write import atomic_write, sync_folder
from lavit.training.engine import distributed

try:
    import fcntl
except ImportError:  # not a Unix: two runs at once are not told from each other
    fcntl = None  # type: ignore[assignment]

SETTINGS, LOCK = "settings.json", "lock"


class Journal:
    """The results of a run, kept as they come. Those of all processes go where the first one says, and only it reads.

    folder: made if it is not there; its parent must be. settings: plain data, all that the results depend on.
    restart: what an earlier run left there is removed.
    Until it is finished, or its process ends, the folder is its own: two runs would mix their results, and the pictures
    beside them.
    Raises ValueError on every process where the folder holds work that was done with other settings, is another run's
    that goes on, or cannot be used.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any], *, restart: bool = False) -> None:
        self.folder = Path(distributed.from_first(os.fspath(folder)))
        self._settings = json.loads(json.dumps(settings))
        self._release: Callable[[], object] | None = None
        problem = None
        if distributed.rank() == 0:
            try:
                problem = self._open(restart)
            except OSError as error:
                problem = f"{self.folder} cannot be used ({error.strerror or error})"
        if problem := distributed.from_first(problem):
            raise ValueError(problem)

    def task(self, name: str, usable: Callable[[Any], bool] | None = None) -> TaskJournal:
        """The part of one task. usable: results for which it is false are done again, such as of a lost picture."""
        return TaskJournal(self.folder, name, usable)

    def finish(self) -> None:
        """Removes it: the results are written elsewhere. For the first process."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._release is not None:
            self._release()

    def _open(self, restart: bool) -> str | None:
        path = self.folder / SETTINGS
        if restart:
            if problem := self._take():
                return problem
            for left in self.folder.iterdir():
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
                elif left.name != LOCK:
                    left.unlink()
        elif path.is_file():
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                return f"{path} is damaged; remove {self.folder}, or begin anew with --restart"
            if other := differences(known, self._settings):
                return (
                    f"{self.folder} holds the results of a run with other settings ({'; '.join(other)}): finish that "
                    "one with its own, or begin anew with --restart"
                )
            return self._take()
        elif self.folder.exists() and any(left.name != LOCK for left in self.folder.iterdir()):
            return f"{self.folder} is no folder of an interrupted run (it has no {SETTINGS})"
        elif problem := self._take():
            return problem
        with atomic_write(path, "w") as file:
            json.dump(self._settings, file, indent=1)
        return None

    def _take(self) -> str | None:
        """Makes the folder, and makes it this run's own; the reason why it cannot be."""
        self.folder.mkdir(exist_ok=True)
        if fcntl is None:
            return None
        file = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        self._release = weakref.finalize(self, os.close, file)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process, and no child's
        except (BlockingIOError, PermissionError):
            self._release()
            return f"{self.folder} belongs to a run that goes on; wait for its end, or give another output"
        except OSError:  # a disk without locks
            pass
        return None


class TaskJournal:
    """The results of one task by item number: those ``known`` from before, and those that are added."""

    def __init__(self, folder: Path, name: str, usable: Callable[[Any], bool] | None = None) -> None:
        self.folder, self.name, self.usable = folder, name, usable
        self._path: Path | None = None

    def known(self) -> dict[int, Any]:
        """What is on the disk; plain data, as JSON gives it back."""
        found: dict[int, Any] = {}
        for path in sorted(self.folder.glob(f"{self.name}.*.jsonl")):
            for line in path.read_bytes().split(b"\n"):
                try:
                    done = json.loads(line)
                    rows = {int(number): result for number, result in done}
                except (ValueError, TypeError):  # empty, or cut
                    continue
                found |= rows
        return {i: result for i, result in found.items() if self.usable is None or self.usable(result)}

    def add(self, done: Sequence[tuple[int, Any]]) -> None:
        """Keeps the results of a batch: all of them or none."""
        if not done:
            return
        line = json.dumps([[number, result] for number, result in done]) + "\n"
        new = self._path is None
        if self._path is None:
            # A file of its own for each process and attempt: nobody continues a line that somebody else left cut.
            self.folder.mkdir(parents=True, exist_ok=True)  # of another machine, where disks are not shared
            self._path = self.folder / f"{self.name}.{secrets.token_hex(6)}.jsonl"
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            data = line.encode()
            while data:
                data = data[os.write(file, data) :]
            os.fsync(file)
        finally:
            os.close(file)
        if new:
            sync_folder(self.folder)


def differences(known: Any, wanted: Any, name: str = "") -> list[str]:
    """What differs between two pieces of plain data, in words: "beams: 2, now 3"."""
    if isinstance(known, dict) and isinstance(wanted, dict):
        keys = list(dict.fromkeys([*known, *wanted]))
        inner = [differences(known.get(key), wanted.get(key), f"{name} {key}".strip()) for key in keys]
        return [line for lines in inner for line in lines]
    if known == wanted:
        return []
    before, now = (text if len(text := json.dumps(value)) <= 40 else f"{text[:37]}..." for value in (known, wanted))
    return [f"{name}: {before}, now {now}"]
