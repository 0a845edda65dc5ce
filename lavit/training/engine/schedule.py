"""What changes with the step: learning rate, annealed values, phases. All are functions of the step alone, so a
checkpoint needs to hold nothing but the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lavit.training.engine.config import setting

PhaseOrder = Literal["selector_then_codebook", "continuous_then_joint"]


@dataclass
class ScheduleConfig:
    """The learning rate over the run."""

    lr: float = setting(2e-3, "peak learning rate")
    min_lr: float = setting(0.0, "learning rate at the end")
    warmup: int = setting(50, "steps of linear warm-up")
    shape: Literal["cosine", "linear", "constant"] = setting("cosine", "after the warm-up; linear: flat, then a tail")
    tail: float = setting(0.4, "fraction of the steps that a linear tail takes")

    def __post_init__(self) -> None:
        if not (self.lr >= self.min_lr >= 0):
            raise ValueError(f"lr, min_lr: expected lr >= min_lr >= 0, got {self.lr} and {self.min_lr}")
        if self.warmup < 0:
            raise ValueError(f"warmup: expected a number of steps >= 0, got {self.warmup}")
        if not 0 <= self.tail <= 1:
            raise ValueError(f"tail: expected a fraction in [0, 1], got {self.tail}")


def learning_rate(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Learning rate of the 0-based `step` out of `steps`.

    Warm-up: lr·(step + 1)/warmup, so that the first step already moves. Then
    cosine: min + (lr − min)·(1 + cos πt)/2 with t from 0 to 1 over the rest; linear: lr until the last `tail` of the
    steps, then a straight line; both would reach min_lr at step == steps.
    """
    peak, low = schedule.lr, schedule.min_lr
    if step < schedule.warmup:
        return peak * (step + 1) / schedule.warmup
    if schedule.shape == "constant":
        return peak
    tail = round(schedule.tail * steps) if schedule.shape == "linear" else steps
    start = max(schedule.warmup, steps - tail)
    done = min(max((step - start) / max(steps - start, 1), 0.0), 1.0)
    weight = 0.5 * (1 + math.cos(math.pi * done)) if schedule.shape == "cosine" else 1 - done
    return low + (peak - low) * weight


@dataclass
class Anneal:
    """A straight line from `start` to `end` over the first `fraction` of the steps, then `end`."""

    start: float = setting(1.0, "value at the first step")
    end: float = setting(1.0, "value after the annealing")
    fraction: float = setting(1.0, "fraction of the steps that the annealing takes")

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction: expected a fraction in [0, 1], got {self.fraction}")

    def at(self, step: int, steps: int) -> float:
        length = self.fraction * steps
        done = min(step / length, 1.0) if length > 0 else 1.0
        return self.start + (self.end - self.start) * done


@dataclass(frozen=True)
class Phase:
    """A stretch of stage 1: from step `start` on, quantised or not, selector learning or frozen."""

    name: str
    start: int
    quantize: bool
    train_selector: bool


def phases(order: PhaseOrder, steps: int, first: float) -> list[Phase]:
    """The author's two accounts of the stage-1 schedule; `first` is the fraction of the steps without quantisation.

    selector_then_codebook: selector, merger and decoder learn on continuous codes; then the selector is frozen while
    the codebook is learned. continuous_then_joint: the same start; then everything learns together. How long the first
    phase lasts is not known (*derived*). `first` = 0 starts with the second phase, 1 never reaches it.
    """
    if not 0 <= first <= 1:
        raise ValueError(f"first: expected a fraction in [0, 1], got {first}")
    switch = round(first * steps)
    if order == "selector_then_codebook":
        both = [Phase("selector", 0, False, True), Phase("codebook", switch, True, False)]
    elif order == "continuous_then_joint":
        both = [Phase("continuous", 0, False, True), Phase("joint", switch, True, True)]
    else:
        raise ValueError(f"order: expected selector_then_codebook or continuous_then_joint, got {order!r}")
    if switch == 0:
        return both[1:]
    return both if switch < steps else both[:1]


def phase_at(step: int, stretch: list[Phase]) -> Phase:
    """The phase that holds `step`."""
    return [phase for phase in stretch if phase.start <= step][-1]
