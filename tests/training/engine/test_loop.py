"""The loop: what it computes, what it survives, how it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stand_in import assert_same, everything, make_run, rate, rows, step_function

from lavit.training.engine import loop
from lavit.training.engine.checkpoint import CheckpointError, Checkpoints
from lavit.training.engine.loop import LoopConfig, StopRequest, TrainingDiverged
from lavit.training.engine.metrics import MetricsWriter

CONFIG = LoopConfig(steps=9, accumulate=2, log_every=2)


def go(run, config=CONFIG, **kwargs):
    kwargs.setdefault("learning_rate", rate)
    return loop.train(run, kwargs.pop("step_function", step_function), config, **kwargs)


def test_accumulated_step_is_the_step_of_the_whole_batch():
    def plain(model, batch, step):
        return {"loss": (model.layer(batch) - 1).square().mean()}

    small, large = make_run(), make_run()
    large.stream = iter([torch.cat([next(large.stream), next(large.stream)])])
    for run, micro_batches in ((small, 2), (large, 1)):
        run.optimizer = torch.optim.SGD(run.model.layer.parameters())
        go(run, LoopConfig(steps=1, accumulate=micro_batches, clip=0), step_function=plain)
    torch.testing.assert_close(small.model.state_dict(), large.model.state_dict())


def test_gradient_is_clipped_to_the_norm():
    run, seen = make_run(), []
    run.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.nn.utils.get_total_norm([p.grad for p in run.parameters]).item())
    )
    go(run, LoopConfig(steps=3, clip=1e-3))
    assert seen == pytest.approx([1e-3] * 3, rel=1e-2)  # torch divides by the norm + 1e-6


def test_rate_follows_the_step_and_the_scale_of_its_group():
    run, seen = make_run(), []
    run.optimizer.register_step_pre_hook(lambda *_: seen.append([g["lr"] for g in run.optimizer.param_groups]))
    go(run, LoopConfig(steps=2))
    assert seen == [[rate(0), rate(0) / 2], [rate(1), rate(1) / 2]]


def test_bf16_runs_the_step_under_autocast_with_float32_parameters():
    seen = []

    def look(model, batch, step):
        y = model.layer(batch)
        seen.append(y.dtype)
        return {"loss": y.square().mean()}

    run = make_run()
    go(run, LoopConfig(steps=1, precision="bf16"), step_function=look)
    assert seen == [torch.bfloat16] and run.model.layer.weight.dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------- bad steps


def test_bad_step_leaves_no_trace_but_its_count():
    run = make_run(poison=[3])
    seen = []

    def look(run):
        state = everything(run)
        seen.append({k: v.clone() for k, v in state.items() if k.startswith(("model.", "optimizer."))})

    go(run, LoopConfig(steps=3, accumulate=2), before_step=look)  # batch 3 belongs to step 1
    assert_same(seen[1], seen[2])
    assert run.skipped == 1 and run.bad_in_a_row == 0 and run.step == 3


def test_bad_steps_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(tmp_path):
    run = make_run(poison=range(5, 100))
    checkpoints = Checkpoints(tmp_path)
    config = LoopConfig(steps=50, checkpoint_every=2, max_bad_steps=3)
    with pytest.raises(TrainingDiverged, match="stopped at step 8: 3 steps in a row .*step-00000004$"):
        go(run, config, checkpoints=checkpoints)
    assert all(torch.isfinite(v).all() for v in run.model.state_dict().values())


def test_infinite_gradient_of_a_finite_loss_is_a_bad_step():
    def steep(model, batch, step):
        y = model.layer(batch).sum()
        return {"loss": (y - y.detach()).abs().sqrt()}  # 0, with slope inf · 0 = nan

    run = make_run()
    with pytest.raises(TrainingDiverged, match="there is no checkpoint yet"):
        go(run, LoopConfig(steps=9, max_bad_steps=2), step_function=steep)


def test_skipped_steps_are_counted_in_the_metrics(tmp_path):
    run, seen = make_run(poison=[1]), []
    go(run, LoopConfig(steps=4, log_every=2), progress=seen.append)
    assert [row["skipped"] for row in seen] == [1, 1] and all("loss" in row for row in seen)


# ------------------------------------------------------------------------------------------------------------ resuming


def straight(tmp_path, config=CONFIG, **kwargs):
    run, writer = make_run(**kwargs), MetricsWriter(tmp_path / "straight", tensorboard=False)
    go(run, config, writer=writer)
    writer.close()
    return everything(run), rows(writer.rows)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "straight").mkdir()
    (tmp_path / "again").mkdir()
    return tmp_path


@pytest.mark.parametrize(("stop_at", "poison"), [(1, ()), (4, ()), (5, (9,))])
def test_stopped_and_resumed_is_bit_for_bit_the_straight_run(folder, stop_at, poison):
    wanted, wanted_rows = straight(folder, poison=poison)

    def interrupt(model, batch, step):
        if step + 1 == stop_at and not stopped:  # in the first of two micro-batches
            stopped.append(signal.raise_signal(signal.SIGTERM))
        return step_function(model, batch, step)

    stopped, checkpoints = [], Checkpoints(folder / "again", constant=("frozen.",))
    run, writer = make_run(poison=poison), MetricsWriter(folder / "again", tensorboard=False)
    assert go(run, step_function=interrupt, checkpoints=checkpoints, writer=writer).signal == signal.SIGTERM
    writer.close()
    assert run.step == stop_at

    run = make_run(poison=poison, seed=99)
    run.load(checkpoints.load(checkpoints.latest()))
    writer = MetricsWriter(folder / "again", resume_at=run.step, tensorboard=False)
    assert go(run, checkpoints=checkpoints, writer=writer).signal is None
    writer.close()
    assert_same(everything(run), wanted)
    assert rows(writer.rows) == wanted_rows


def test_killed_by_sigterm_mid_accumulation_another_process_goes_on_bit_for_bit(folder):
    config = LoopConfig(steps=30, accumulate=3, log_every=4)
    wanted, wanted_rows = straight(folder, config)
    command = [sys.executable, str(Path(__file__).parents[2] / "helpers" / "stand_in.py"), str(folder / "again")]
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([*command, "no"], stdout=subprocess.PIPE, text=True, cwd=root, env=environment)
    assert first.stdout is not None
    for number, _ in enumerate(first.stdout, start=1):
        if number == 3 * 6 + 2:  # the second of three micro-batches of step 6
            first.send_signal(signal.SIGTERM)
            break
    rest, _ = first.communicate(timeout=60)
    assert first.returncode == 0 and rest.splitlines()[-1].startswith("stopped by 15 at")
    done = subprocess.run([*command, "yes"], stdout=subprocess.PIPE, text=True, cwd=root, env=environment, timeout=120)
    assert done.stdout.splitlines()[-1] == "stopped by None at 30"

    run, checkpoints = make_run(seed=5), Checkpoints(folder / "again", constant=("frozen.",))
    run.load(checkpoints.load(checkpoints.latest()))
    assert_same(everything(run), wanted)
    assert rows(MetricsWriter(folder / "again", resume_at=30, tensorboard=False).rows) == wanted_rows


def test_checkpoint_of_another_model_names_its_tensors(tmp_path):
    run, checkpoints = make_run(), Checkpoints(tmp_path)
    path = run.save(checkpoints)
    run.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"extra\.weight"):
        run.load(checkpoints.load(path))


# ------------------------------------------------------------------------------------------------------------- signals


def test_handlers_are_put_back_and_a_second_signal_acts_as_before():
    def mine(number, frame):
        hits.append(number)

    hits: list[int] = []
    old = signal.signal(signal.SIGTERM, mine)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.signal == signal.SIGTERM and not hits
            signal.raise_signal(signal.SIGTERM)
            assert hits == [signal.SIGTERM]
        with pytest.raises(ZeroDivisionError), StopRequest():
            raise ZeroDivisionError
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, old)


def test_run_that_saves_nothing_leaves_signals_to_its_caller():
    def interrupt(model, batch, step):
        signal.raise_signal(signal.SIGINT)
        return step_function(model, batch, step)

    # Python's own handler: a process that was started in the background of a shell ignores SIGINT.
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            go(make_run(), step_function=interrupt)
    finally:
        signal.signal(signal.SIGINT, old)


@pytest.mark.parametrize("name", ["steps", "batch_size", "accumulate", "log_every", "max_bad_steps"])
def test_impossible_settings_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected a number >= 1, got 0"):
        LoopConfig(**{name: 0})
