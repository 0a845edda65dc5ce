"""Checkpoints: whole or not there, without code, with every generator."""

from __future__ import annotations

import json
import os
import pickle
import random

import numpy as np
import pytest
import torch

from lavit.training.engine import checkpoint
from lavit.training.engine.checkpoint import CheckpointError, Checkpoints


def save(checkpoints, step, value=1.0, best=None):
    model = {"layer.weight": torch.full((3,), value), "frozen.weight": torch.arange(4.0)}
    rest = {"optimizer": {"state": {}}, "loop": {"phase": "a"}, "local": {"x": torch.ones(1)}}
    return checkpoints.save(step, model=model, **rest, best=best)


def test_what_is_loaded_is_what_was_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", constant=("frozen.",))
    path = save(checkpoints, 7)
    got = checkpoints.load(path)
    assert got["step"] == 7 and got["loop"] == {"phase": "a"} and got["local"] == {"x": torch.ones(1)}
    assert torch.equal(got["model"]["frozen.weight"], torch.arange(4.0))
    assert torch.equal(got["model"]["layer.weight"], torch.ones(3))


def test_constant_tensors_are_stored_once(tmp_path):
    checkpoints = Checkpoints(tmp_path, constant=("frozen.",))
    path = save(checkpoints, 1)
    assert list(torch.load(path / "model.pt", weights_only=True)) == ["layer.weight"]
    assert list(torch.load(tmp_path / "constant.pt", weights_only=True)) == ["frozen.weight"]


def test_only_the_newest_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 30, 100_000_000):
        save(checkpoints, step)
    assert [p.name for p in checkpoints.all()] == ["step-00000030", "step-100000000"]


def test_the_best_stays_until_there_is_a_better_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, constant=("frozen.",))
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2)):
        save(checkpoints, step, value=float(step), best={"step": best, "val_loss": 0.5})
    assert [p.name for p in checkpoints.all()] == ["step-00000002", "step-00000004"]
    told = json.loads((tmp_path / "best.json").read_text())
    assert told == {"step": 2, "val_loss": 0.5, "checkpoint": "step-00000002"}
    best = checkpoints.load_model(2)
    assert best["layer.weight"].tolist() == [2.0] * 3 and torch.equal(best["frozen.weight"], torch.arange(4.0))
    save(checkpoints, 5, best={"step": 5})
    assert [p.name for p in checkpoints.all()] == ["step-00000005"]
    with pytest.raises(CheckpointError, match="step-00000002: there is no such checkpoint"):
        checkpoints.load_model(2)
    flip(tmp_path / "step-00000005" / "model.pt")
    with pytest.raises(CheckpointError, match="model.pt has changed"):
        checkpoints.load_model(5)
    checkpoints.clear()
    assert list(tmp_path.iterdir()) == []


def test_same_step_again_replaces_the_old_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, 1.0)
    path = save(checkpoints, 1, 2.0)
    assert checkpoints.load(path)["model"]["layer.weight"].tolist() == [2.0] * 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001"]


def test_failed_writing_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    good = save(checkpoints, 1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(checkpoints, 2)
    monkeypatch.undo()
    assert checkpoints.latest() == good
    assert save(checkpoints, 2) == checkpoints.latest()  # what was left over is not in the way


def flip(file, place=0.5):
    """One bit of one byte, the size as it was."""
    content = bytearray(file.read_bytes())
    content[int(len(content) * place)] ^= 1
    file.write_bytes(content)


def without(name):
    def change(file):
        manifest = json.loads(file.read_text())
        del manifest[name]
        file.write_text(json.dumps(manifest))

    return change


DAMAGES = {
    "cut short": ("model.pt", lambda file: file.write_bytes(file.read_bytes()[:-20])),
    "removed": ("optimizer.pt", lambda file: file.unlink()),
    "manifest cut short": ("checkpoint.json", lambda file: file.write_bytes(file.read_bytes()[:-20])),
    "a bit of the model": ("model.pt", flip),
    "a bit of the optimizer": ("optimizer.pt", flip),
    "a bit of a process's state": ("rank-0.pt", flip),
    "zeroed": ("model.pt", lambda file: file.write_bytes(bytes(file.stat().st_size))),
    **{f"no {name}": ("checkpoint.json", without(name)) for name in ("step", "loop", "files", "world_size", "format")},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_named_and_passed_over(tmp_path, damage, caplog):
    checkpoints = Checkpoints(tmp_path)
    good, bad = save(checkpoints, 1), save(checkpoints, 2)
    name, change = DAMAGES[damage]
    change(bad / name)
    assert checkpoints.latest() == checkpoints.to_resume() == good
    assert str(bad) in caplog.text and name in caplog.text
    assert checkpoints.load(good)["step"] == 1


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_without_the_constant_tensors_nothing_is_resumed_and_nothing_deleted(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path / "checkpoints", constant=("frozen.",))
    saved = [save(checkpoints, step) for step in (1, 2, 3)]
    file = checkpoints.folder / "constant.pt"
    file.unlink() if damage == "missing" else flip(file)
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole \(step-00000001: constant.pt .*--overwrite"):
        Checkpoints(checkpoints.folder, constant=("frozen.",)).to_resume()
    assert checkpoints.all() == saved and all((path / "model.pt").is_file() for path in saved)


def test_where_there_is_nothing_to_resume_the_error_says_what_there_is(tmp_path):
    with pytest.raises(CheckpointError, match="run: there is no such folder to resume from"):
        Checkpoints(tmp_path / "run" / "checkpoints").to_resume()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training.yaml").touch()
    with pytest.raises(CheckpointError, match=r"no checkpoint to resume from \(.* holds training.yaml\)"):
        Checkpoints(tmp_path / "run" / "checkpoints").to_resume()


def test_damaged_checkpoints_of_later_steps_do_not_drive_out_good_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    flip(save(checkpoints, 9) / "model.pt")
    good = save(checkpoints, 4)
    assert checkpoints.latest() == good


def test_no_code_runs_from_a_checkpoint(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    checkpoints = Checkpoints(tmp_path)
    path = save(checkpoints, 1)
    size = (path / "optimizer.pt").stat().st_size
    (path / "optimizer.pt").write_bytes(pickle.dumps(Evil(), protocol=2).ljust(size, b"\0"))
    with pytest.raises(CheckpointError, match="optimizer.pt: cannot be read"):
        checkpoints.load(path)
    assert not (tmp_path / "owned").exists()


def test_checkpoint_of_more_processes_is_refused(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    path = save(checkpoints, 1)
    monkeypatch.setattr(checkpoint.distributed, "world_size", lambda: 2)
    with pytest.raises(CheckpointError, match="written by 1 processes, this run has 2"):
        checkpoints.load(path)


def test_clear_removes_what_an_earlier_run_left(tmp_path):
    checkpoints = Checkpoints(tmp_path, constant=("frozen.",))
    save(checkpoints, 1)
    (tmp_path / ".step-00000002.tmp").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    checkpoints.clear()
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_every_generator_goes_on_where_it_was(tmp_path):
    random.gauss(0, 1)  # leaves a second normal number in store
    np.random.standard_normal()
    path = tmp_path / "g.pt"
    torch.save(checkpoint.generator_state(), path)

    def draw():
        return torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), [random.gauss(0, 1) for _ in range(3)]

    wanted = draw()
    checkpoint.set_generator_state(torch.load(path, weights_only=True))
    assert draw() == wanted
