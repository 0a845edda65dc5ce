"""The lock of an output folder: one run at a time, and no lock outlives its run for long."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from lavit.training.engine import lock
from lavit.training.engine.lock import LockedError, locked

HOLD = """
import sys, time
from pathlib import Path
from lavit.training.engine.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


def write(folder, **changes):
    told = {"host": socket.gethostname(), "pid": os.getpid(), "started": lock._started(os.getpid()), "token": "x"}
    folder.mkdir(exist_ok=True)
    (folder / ".lock").write_text(json.dumps(told | changes))


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"process {process.pid} on .* is running here"), locked(tmp_path):
            pass
        assert (tmp_path / ".lock").exists()
    finally:
        process.kill()  # nothing of it runs any more: its lock stays
        process.wait()
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_ends_with_its_block_and_an_empty_folder_with_it(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "new"):
        with pytest.raises(LockedError), locked(tmp_path / "new"):
            pass
        raise KeyError
    assert not (tmp_path / "new").exists()
    with locked(tmp_path / "new"):
        (tmp_path / "new" / "kept").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["kept"]


def test_a_number_that_another_process_got_is_no_sign_of_life(tmp_path):
    write(tmp_path, started="another time")
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"pid": -1}'])
def test_a_file_that_is_no_lock_does_not_lock(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    os.utime(tmp_path / ".lock", (time.time() - 1000,) * 2)
    with locked(tmp_path):
        pass


def test_a_run_of_another_machine_counts_until_it_is_silent(tmp_path):
    write(tmp_path, host="elsewhere")
    with pytest.raises(LockedError, match="on elsewhere is running here"), locked(tmp_path):
        pass
    os.utime(tmp_path / ".lock", (time.time() - lock.SILENCE - 5,) * 2)
    with locked(tmp_path):
        pass


def test_a_run_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with locked(tmp_path):
        os.utime(tmp_path / ".lock", (0, 0))
        end = time.monotonic() + 20
        while (tmp_path / ".lock").stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert (tmp_path / ".lock").stat().st_mtime > 0
