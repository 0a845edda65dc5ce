"""Metrics: means over good steps, use of the codes, the file."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lavit.training.engine.metrics import COUNTS, Meter, MetricsWriter, code_use, duration, progress_line, read_rows


def test_means_leave_out_discarded_steps():
    meter = Meter()
    for value, good in ((1.0, True), (math.nan, False), (3.0, True)):
        meter.add({"loss": torch.tensor(value)})
        meter.commit() if good else meter.discard()
    assert meter.read() == {"loss": 2.0}
    assert meter.read() == {}


def test_open_window_survives_a_checkpoint():
    a, b = Meter(), Meter()
    a.add({"loss": torch.tensor(0.1), COUNTS: torch.tensor([1, 0])})
    a.commit()
    b.load_state_dict(a.state_dict())
    for meter in (a, b):
        meter.add({"loss": torch.tensor(0.7), COUNTS: torch.tensor([0, 1])})
        meter.commit()
    assert a.read() == b.read() == pytest.approx({"loss": 0.4, "codes_used": 2, "perplexity": 2.0})


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_perplexity_lies_between_one_and_the_codes_used(counts):
    used, perplexity = (v.item() for v in code_use(torch.tensor(counts)))
    assert used == sum(c > 0 for c in counts)
    if used:
        assert 1 - 1e-9 <= perplexity <= used + 1e-9
    else:
        assert perplexity == 0


def test_perplexity_of_equal_use_is_the_number_of_codes():
    assert code_use(torch.tensor([5, 5, 0, 5]))[1].item() == pytest.approx(3.0)


def test_resumed_file_drops_rows_that_will_be_written_again(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    for step in (2, 4, 6):
        writer.write({"step": step})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # the process died here
    writer = MetricsWriter(tmp_path, resume_at=4, tensorboard=False)
    writer.write({"step": 6, "again": 1})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == writer.rows == [{"step": 2}, {"step": 4}, {"step": 6, "again": 1}]


def test_new_run_starts_a_new_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    MetricsWriter(tmp_path, tensorboard=False).close()
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = MetricsWriter(tmp_path)
    writer.write({"step": 3, "loss": 0.5, "phase": "joint"})
    writer.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss")] == [(3, 0.5)]


def test_progress_line_says_what_is_there():
    row = {"step": 20, "phase": "joint", "loss": 0.5, "codes_used": 12, "skipped": 0, "eta_seconds": 185.2}
    assert progress_line(row, 600) == " 20/600  joint  loss 0.5000  codes 12  eta 3 min 05 s"


@pytest.mark.parametrize(("seconds", "text"), [(41.6, "42 s"), (7621, "2 h 07 min"), (-1, "0 s")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_row_of_step_0_is_that_of_the_run_as_it_goes_on(tmp_path):
    first = MetricsWriter(tmp_path, opening={"planned": 3}, tensorboard=False)
    first.write({"step": 1, "loss": 1.0})
    first.close()
    second = MetricsWriter(tmp_path, resume_at=1, opening={"planned": 5}, tensorboard=False)
    second.close()
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 0, "planned": 5}, {"step": 1, "loss": 1.0}]
