"""One run at a time in an output folder."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import getLogger
from pathlib import Path
from typing import Any

logger = getLogger(__name__)

FILE = ".lock"
BEAT = 20.0  # seconds between two signs of life
SILENCE = 120.0  # seconds without one after which a run on another machine is taken for dead


class LockedError(FileExistsError):
    """A folder in which another run is writing; the message names its machine, its process and the file."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process; makes it, and takes it away again if nothing was put into it.

    The lock is the file ``.lock``, with machine and process of the run. One whose process is gone is taken over, and so
    is that of another machine which has shown no sign of life (the file's time) for two minutes.
    Raises LockedError where another run holds the folder.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    own = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    own["token"] = secrets.token_hex(8)
    path = folder / FILE
    _take(path, own)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, own, ended), daemon=True, name="lavit-lock")
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        if _read(path) == own:
            path.unlink()
        if made:
            with suppress(OSError):
                folder.rmdir()


def _take(path: Path, own: dict[str, Any]) -> None:
    offer = path.with_name(f"{FILE}.{own['token']}.tmp")
    offer.write_text(json.dumps(own))
    try:
        for _ in range(10):  # others may be taking over the same stale lock
            with suppress(FileExistsError):
                os.link(offer, path)  # makes the file whole or fails where there is one
                return
            _take_away(path, offer)
        raise LockedError(f"{path}: other runs keep taking this folder")
    finally:
        offer.unlink()


def _take_away(path: Path, offer: Path) -> None:
    """Removes a lock whose run is gone. offer: a file just written, whose time is now by the file system's clock."""
    found = _read(path)
    try:
        silent = offer.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return
    if found is not None and _alive(found, silent):
        raise LockedError(
            f"{path.parent}: process {found.get('pid')} on {found.get('host')} is running here; two runs in one folder "
            f"would destroy each other's files ({path}, last sign of life {max(silent, 0):.0f} s ago)"
        )
    aside = path.with_name(f"{FILE}.{secrets.token_hex(8)}.tmp")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        if _read(aside) != found:  # someone was faster, and this is the new lock
            with suppress(FileExistsError):
                os.link(aside, path)
        elif found is not None:
            logger.warning("%s: its run (process %s on %s) is gone", path, found.get("pid"), found.get("host"))
        aside.unlink()


def _alive(found: dict[str, Any], silent: float) -> bool:
    if found.get("host") != socket.gethostname():
        return silent < SILENCE
    pid = found.get("pid")
    if not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process
        return True
    return found.get("started") == _started(pid)  # else the number was given to another process


def _started(pid: int) -> str | None:
    """When a process began, in the system's own units; None where it does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _read(path: Path) -> dict[str, Any] | None:
    """None for a file that is missing or no lock."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _beat(path: Path, own: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        if _read(path) == own:
            with suppress(OSError):
                os.utime(path)
