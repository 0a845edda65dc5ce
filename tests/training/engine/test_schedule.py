"""Learning rate, annealing and phases as functions of the step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavit.training.engine.schedule import Anneal, ScheduleConfig, learning_rate, phase_at, phases


def test_warmup_then_cosine_at_its_known_points():
    rate = ScheduleConfig(lr=1.0, min_lr=0.2, warmup=10, shape="cosine")
    assert learning_rate(0, 110, rate) == pytest.approx(0.1)
    assert learning_rate(9, 110, rate) == pytest.approx(1.0)
    assert learning_rate(60, 110, rate) == pytest.approx(0.6)  # half way: the mean of peak and minimum
    assert learning_rate(110, 110, rate) == pytest.approx(0.2)


def test_linear_tail_is_flat_before_it():
    rate = ScheduleConfig(lr=1.0, min_lr=0.0, warmup=0, shape="linear", tail=0.5)
    assert [learning_rate(s, 8, rate) for s in range(9)] == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


@given(
    steps=st.integers(1, 1000),
    warmup=st.integers(0, 1200),
    low=st.floats(0, 1),
    shape=st.sampled_from(["cosine", "linear", "constant"]),
    tail=st.floats(0, 1),
)
def test_rate_stays_within_its_bounds_and_never_rises_after_the_warmup(steps, warmup, low, shape, tail):
    schedule = ScheduleConfig(lr=1.0, min_lr=low, warmup=warmup, shape=shape, tail=tail)
    rates = [learning_rate(step, steps, schedule) for step in range(steps)]
    assert all(0 < r <= 1 + 1e-12 or low == 0 for r in rates)
    after = rates[warmup:]
    assert all(b <= a + 1e-12 for a, b in zip(after[:-1], after[1:], strict=True))
    assert all(r >= low - 1e-12 for r in after)


def test_annealing_ends_where_it_should():
    noise = Anneal(1.0, 0.0, 0.6)
    assert [noise.at(s, 10) for s in (0, 3, 6, 9)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert Anneal(1.0, 0.5, 0.0).at(0, 10) == 0.5


def test_both_orders_of_the_author():
    a = phases("selector_then_codebook", 100, 0.3)
    assert [(p.start, p.quantize, p.train_selector) for p in a] == [(0, False, True), (30, True, False)]
    b = phases("continuous_then_joint", 100, 0.3)
    assert [(p.start, p.quantize, p.train_selector) for p in b] == [(0, False, True), (30, True, True)]
    assert phase_at(29, b).name == "continuous" and phase_at(30, b).name == "joint"


def test_first_phase_may_be_empty_or_everything():
    assert [p.name for p in phases("continuous_then_joint", 100, 0.0)] == ["joint"]
    assert [p.name for p in phases("continuous_then_joint", 100, 1.0)] == ["continuous"]
    with pytest.raises(ValueError, match=r"first: expected a fraction in \[0, 1\], got 1.5"):
        phases("continuous_then_joint", 100, 1.5)


@pytest.mark.parametrize(("values", "name"), [({"min_lr": 1.0}, "min_lr"), ({"warmup": -1}, "warmup")])
def test_impossible_schedules_are_refused(values, name):
    with pytest.raises(ValueError, match=name):
        ScheduleConfig(**values)
