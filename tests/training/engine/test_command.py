"""What the training commands say before and after they train."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from lavit.cli import Terminated
from lavit.cli import main as lavit
from lavit.threads import on as on_threads
from lavit.training.engine import command, distributed, replaced
from lavit.training.tokenizer import train


@pytest.fixture
def seen(monkeypatch):
    """What `train_tokenizer` was called with, and on how many threads, in place of a training."""
    calls = []

    def pretend(config, **flags):
        calls.append(SimpleNamespace(config=config, threads=torch.get_num_threads(), flags=flags))
        return SimpleNamespace(stopped_by=None, path=config.output, skipped_images=[])

    monkeypatch.setattr(train, "train_tokenizer", pretend)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return calls


def a_run(folder, text="data: shapes\n"):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "training.yaml").write_text(text)


def test_a_command_that_falls_back_to_shapes_says_so_first(seen, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "my.yaml").write_text("extends: small\n")
    a_run(tmp_path / "run")
    for words, line in (
        ([], "data: the built-in shapes world (no --data given)"),
        (["--data", "shapes"], "data: the built-in shapes world"),
        (["--config", "my.yaml"], "data: the built-in shapes world (no --data given; my.yaml names no other)"),
        (["--resume", "--output", "run"], "data: the built-in shapes world (as the run began)"),
    ):
        assert lavit(["train", "tokenizer", *words]) == 0
        assert capsys.readouterr().out.splitlines()[0] == line
    assert lavit(["train", "tokenizer", "--data", "pictures"]) == 0
    assert "shapes" not in capsys.readouterr().out


def test_a_run_goes_on_on_as_many_threads_as_it_began_with(seen, tmp_path, capsys):
    a_run(tmp_path / "run", "threads: 1\n")
    with on_threads(2):
        assert lavit(["train", "tokenizer", "--output", str(tmp_path / "new"), "--threads", "3"]) == 0
        assert lavit(["train", "tokenizer", "--output", str(tmp_path / "run"), "--resume"]) == 0
        assert lavit(["train", "tokenizer", "--config", str(tmp_path / "run/training.yaml")]) == 0
        assert torch.get_num_threads() == 2
    assert [(call.threads, call.config.threads) for call in seen] == [(3, 3), (1, 1), (1, 1)]
    said = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines() if " CPU" in line]
    assert said == ["--threads", "as the run began", "as the settings say"]


@pytest.mark.parametrize("config", [False, True])
def test_a_mistyped_output_names_the_runs_nearby_and_makes_nothing(seen, tmp_path, monkeypatch, capsys, config):
    monkeypatch.chdir(tmp_path)
    for name in ("tokenizer", "tokenizer-2", "language", ".hidden", "empty"):
        (a_run if name != "empty" else os.makedirs)(tmp_path / "runs" / name)
    (tmp_path / "my.yaml").write_text("extends: small\n")
    before = sorted(tmp_path.rglob("*"))
    more = ["--config", "my.yaml"] if config else []
    for output, told in (
        ("runs/tokeniser", "; did you mean runs/tokenizer or runs/tokenizer-2?"),
        ("run/tokenizer", "; did you mean runs/tokenizer or runs/tokenizer-2"),
        (str(tmp_path / "runs/langage"), f"; did you mean {tmp_path}/runs/language?"),
        ("runs/zzz", "(there are runs in runs/language, runs/tokenizer, runs/tokenizer-2)"),
        ("runs/empty", "with the settings of the run to go on with"),
        ("none/of/these/folders", "with the settings of the run to go on with"),
    ):
        assert lavit(["train", "tokenizer", "--resume", "--output", output, *more]) == 2
        said = capsys.readouterr().err
        assert f"--resume: {output}/training.yaml is not there" in said and told in said
    assert sorted(tmp_path.rglob("*")) == before and not seen


def test_no_output_is_the_folder_of_the_stage_in_runs(seen, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert lavit(["train", "tokenizer", "--resume"]) == 2
    assert "--resume: runs/tokenizer/training.yaml is not there" in capsys.readouterr().err


def left_aside(folder):
    """A run that a killed one was to replace."""
    a_run(folder / replaced.ASIDE, "seed: 3\n")
    (folder / replaced.ASIDE / "config.json").write_text("{}")
    (folder / "training.yaml").write_text("seed: 4\n")


def test_of_several_processes_the_first_one_puts_a_run_back_and_the_others_wait_for_it(seen, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    left_aside(folder)
    lock = command.locked

    def first_after_a_while():
        time.sleep(0.3)
        with lock(folder):
            replaced.recover(folder)

    def refused(folder):
        raise AssertionError("the first process alone takes the lock")

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(command, "locked", refused)
    beside = threading.Thread(target=first_after_a_while)
    beside.start()
    try:
        assert lavit(["train", "tokenizer", "--resume", "--output", str(folder)]) == 0
    finally:
        beside.join()
    assert seen[0].config.seed == 3


def test_a_run_that_nobody_puts_back_is_told(seen, tmp_path, monkeypatch, capsys):
    left_aside(tmp_path / "run")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(command, "WAIT", 0.1)
    assert lavit(["train", "tokenizer", "--resume", "--output", str(tmp_path / "run")]) == 2
    assert "--resume: the first process has not put back the run in" in capsys.readouterr().err and not seen


def test_help_shows_the_settings_of_the_run_that_would_go_on(tmp_path, capsys):
    a_run(tmp_path / "run", "seed: 7\nloop: {steps: 11}\n")
    words = ["train", "tokenizer", "--output", str(tmp_path / "run"), "--steps", "12"]
    for more, run, shown in (
        (["--resume"], True, ("7", "12")),
        ([], False, ("0", "12")),
        (["--resume", "--no-such-word", "1"], True, ("7", "11")),
        (["--no-such-word", "1", "--preset=lavit-g"], False, None),
    ):
        assert lavit([*words, *more, "--help"]) == 0
        said = capsys.readouterr().out
        assert (f"settings of the run in {tmp_path / 'run'}, with" in said) == run
        if shown is None:
            assert "settings of the preset lavit-g, with" in said
            continue
        lines = {line.split()[0]: line for line in said.splitlines() if line.startswith("  --")}
        assert tuple(lines[name].rpartition("[")[2] for name in ("--seed", "--loop.steps")) == tuple(
            f"{value}]" for value in shown
        )


# ------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(("raised", "code", "name"), [(KeyboardInterrupt, 130, "SIGINT"), (Terminated, 143, "SIGTERM")])
def test_a_signal_outside_of_the_loop_is_told_with_what_can_be_done(monkeypatch, tmp_path, capsys, raised, code, name):
    def stopped(config, **_):
        raise raised

    monkeypatch.setattr(train, "train_tokenizer", stopped)
    a_run(tmp_path / "run")
    step = tmp_path / "run/checkpoints/step-00000001/checkpoint.json"
    step.parent.mkdir()
    step.write_text("{}")
    os.utime(step, (1, 1))  # of a run of before
    output = ["--output", str(tmp_path / "run")]
    assert lavit(["train", "tokenizer", "--overwrite", *output]) == code
    assert f"lavit train tokenizer: stopped by {name} before the first checkpoint" in capsys.readouterr().err
    assert lavit(["train", "tokenizer", "--resume", *output]) == code
    assert f"stopped by {name}; go on with --resume --output {tmp_path / 'run'}" in capsys.readouterr().err


# A shell has what it starts in the background ignore SIGINT, and so whatever that starts.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from lavit.cli import main
from lavit.training.tokenizer import initialization
row = initialization._log_encoder
def told(found):
    row(found)
    print("pretraining", flush=True)
initialization._log_encoder = told
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_encoder_pretrains_leaves_nothing_half_done(tmp_path, number):
    words = ["train", "tokenizer", "--encoder_steps", "100000", "--output", str(tmp_path / "run"), "--device", "cpu"]
    run = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.stdout is not None
    while run.stdout.readline() != "pretraining\n":
        assert run.poll() is None
    run.send_signal(number)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 128 + number
    assert f"stopped by {number.name} before the first checkpoint" in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_processes_wait_for_the_first_one_longer_than_it_works_alone(monkeypatch):
    said = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, **words: said.update(words))
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: None)
    with distributed.process_group(torch.device("cpu")):
        pass
    assert said["timeout"] >= timedelta(hours=1)


def test_a_shapes_run_is_told_from_others():
    from lavit.shapes.world import SHAPES_WORLD
    from lavit.training.tokenizer.recipe import TokenizerTrainingConfig

    assert TokenizerTrainingConfig(data=SHAPES_WORLD).on_shapes
    assert not TokenizerTrainingConfig(data="shapes/").on_shapes
