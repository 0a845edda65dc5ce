"""The training loop of every stage.

A stage brings a model, an optimizer, a stream of batches and a step function; `train` does the rest: accumulation,
precision, clipping, the learning rate, bad steps, metrics, checkpoints and stopping. Read `train` first.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lavit.training.engine import distributed
from lavit.training.engine.checkpoint import CheckpointError, Checkpoints, generator_state, set_generator_state
from lavit.training.engine.identity import differences
from lavit.training.engine.metrics import Meter, MetricsWriter
from lavit.training.engine.recipe import LoopConfig
from lavit.training.engine.validation import Validation, better, measure

logger = logging.getLogger(__name__)


class Stream(Protocol):
    """Batches without end, and a position that can be saved: after `load_state_dict` the same batches follow."""

    def __next__(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Run:
    """Everything that changes during a run; what a checkpoint holds.

    replica: what the step function calls, the model itself or its DistributedDataParallel wrapper.
    settings, parts: what the state means and what it was learned beside, by name (`engine.identity`); checkpoints hold
        them, and refuse to go on with others.
    best: step, val_loss, phase and data ("of") of the best validation so far. checkpoints: where the run is saved.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    stream: Stream
    step: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    phase: str = ""
    meter: Meter = field(default_factory=Meter)
    replica: nn.Module | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    checkpoints: Checkpoints | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def save(self, checkpoints: Checkpoints) -> Path:
        loop = {name: getattr(self, name) for name in ("skipped", "bad_in_a_row", "phase", "best")}
        local = {"generators": generator_state(), "stream": self.stream.state_dict(), "meter": self.meter.state_dict()}
        return checkpoints.save(
            self.step,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            loop=loop,
            local=local,
            identity={"settings": self.settings, "parts": self.parts},
            best=self.best,
        )

    def load(self, saved: dict[str, Any], *, allow_changes: bool = False) -> None:
        """Puts what `Checkpoints.load` returned in place. allow_changes: with other settings than it was made with.

        CheckpointError names settings and parts that are others than the checkpoint's, and tensors that do not fit.
        """
        self._check_identity(saved, allow_changes)
        try:
            self.model.load_state_dict(saved["model"])
            options = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(saved["optimizer"])
            for group, own in zip(self.optimizer.param_groups, options, strict=True):
                group.update(own)  # the state brings the options that it was made with
            self.stream.load_state_dict(saved["local"]["stream"])
        except (RuntimeError, ValueError) as problem:
            raise CheckpointError(f"{saved['path']}: does not fit this run: {problem}") from None
        self.step = saved["step"]
        for name, value in saved["loop"].items():
            setattr(self, name, value)
        self.meter.load_state_dict(saved["local"]["meter"], self.device)
        set_generator_state(saved["local"]["generators"])  # last: whatever came before may have drawn numbers

    def _check_identity(self, saved: dict[str, Any], allow_changes: bool) -> None:
        where, identity = saved["path"], saved["identity"]
        if parts := differences(identity.get("parts", {}), self.parts):
            raise CheckpointError(
                f"{where}: was learned beside other parts than this run has ({'; '.join(parts)}); a run cannot change "
                "them: begin a new one"
            )
        if changed := differences(identity.get("settings", {}), self.settings):
            if not allow_changes:
                raise CheckpointError(
                    f"{where}: was made with other settings ({'; '.join(changed)}); leave them as they were, or say "
                    "--allow-changes to go on with the new ones"
                )
            logger.warning("going on with other settings than %s was made with: %s", where, "; ".join(changed))


class TrainingDiverged(RuntimeError):
    """Too many bad steps in a row; the message names the last good checkpoint."""


StepFunction = Callable[..., Mapping[str, Tensor]]
"""(model, micro-batch, step) -> 0-d tensors: "loss", which is minimised, and whatever else is to be logged. The mean
over the micro-batches of all processes is taken of each. A skipped step must leave no trace: what it would change
besides gradients belongs into a hook of the optimizer's step."""

LookAhead = Callable[[list[Any], int], list[tuple[Any, dict[str, Any]]]]
"""(this process's micro-batches of a step, step) -> for each the micro-batch, maybe with what was computed of it added,
and the arguments by name that the step function gets beside it: whatever the loss of a part must know of the whole, so
that it does not matter how a step's batch is divided into micro-batches and processes."""


def train(
    run: Run,
    step_function: StepFunction,
    config: LoopConfig,
    *,
    learning_rate: Callable[[int], float],
    before_step: Callable[[Run], None] | None = None,
    look_ahead: LookAhead | None = None,
    validation: Validation | None = None,
    checkpoints: Checkpoints | None = None,
    writer: MetricsWriter | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> StopRequest:
    """Trains from ``run.step`` to ``config.steps``, or until SIGTERM or SIGINT where there are `checkpoints`: then the
    step is finished and saved. Without them a signal acts as it would elsewhere.

    learning_rate: step -> rate; a parameter group may scale it with its "lr_scale". before_step: called first thing in
    every step, for changes of phase. look_ahead: called where a step has several micro-batches, in this process or in
    others, without gradients; without it all micro-batches weigh the same. validation: measured before the checkpoints
    that are due by their number and at the end, not where a signal stops a run between them: a run that goes on has
    the rows of one that never stopped. progress: gets every row of metrics, with "eta_seconds".
    Returns the stop request; its ``signal`` is None when the run reached its end.
    Raises TrainingDiverged after ``config.max_bad_steps`` bad steps in a row.
    """
    report = _Reporter(run, config, writer, progress)
    with StopRequest(listen=checkpoints is not None) as stop:
        while run.step < config.steps and not stop.agreed:
            if before_step is not None:
                before_step(run)
            rate = learning_rate(run.step)
            for group in run.optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)

            loss = _forward_backward(run, step_function, config, look_ahead)
            norm = _clip(run.parameters, config.clip)
            bad, stop.agreed = _ask_all(torch.isfinite(loss) & torch.isfinite(norm), stop.signal is not None)
            if not bad:
                run.optimizer.step()
                run.meter.commit()
            else:
                run.meter.discard()
                run.skipped += 1
                logger.warning("step %d: the loss or a gradient is NaN or Inf; the step is skipped", run.step + 1)
            run.optimizer.zero_grad(set_to_none=True)
            run.step += 1
            run.bad_in_a_row = run.bad_in_a_row + 1 if bad else 0

            report.after_step(rate, norm, bad)
            if run.bad_in_a_row >= config.max_bad_steps:
                raise TrainingDiverged(_diverged(run, checkpoints))
            if validation is not None and _is_due(run, config, stopping=False):
                with report.pause():
                    if numbers := measure(run, validation, config.precision == "bf16"):
                        run.best = better(numbers, run.step, run.phase, validation.fingerprint, run.best)
                        report.write({"step": run.step, "phase": run.phase, **numbers})
            if checkpoints is not None and _is_due(run, config, stop.agreed):
                with report.pause():
                    run.save(checkpoints)
    return stop


def _forward_backward(
    run: Run, step_function: StepFunction, config: LoopConfig, look_ahead: LookAhead | None
) -> Tensor:
    """Sums the gradient of the mean loss over the micro-batches; returns that loss, still on the device."""
    model = run.replica if run.replica is not None else run.model
    total = torch.zeros((), device=run.device)
    autocast = partial(torch.autocast, run.device.type, torch.bfloat16, enabled=config.precision == "bf16")
    seen: list[tuple[Any, dict[str, Any]]] = []
    if look_ahead is not None and config.accumulate * distributed.world_size() > 1:
        batches = [next(run.stream) for _ in range(config.accumulate)]
        with torch.no_grad(), autocast():
            seen = look_ahead(batches, run.step)
    for micro in range(config.accumulate):
        batch, told = seen[micro] if seen else (next(run.stream), {})
        # Gradients travel between processes once a step, with the last micro-batch.
        last = micro + 1 == config.accumulate
        with nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            with autocast():
                losses = step_function(model, batch, run.step, **told)
            loss = losses["loss"].float() / config.accumulate
            loss.backward()
        total += loss.detach()
        run.meter.add(losses)
    return total


def _clip(parameters: list[nn.Parameter], largest: float) -> Tensor:
    """Scales the gradients to a norm of at most `largest` and returns the norm that they had."""
    if largest > 0:
        return nn.utils.clip_grad_norm_(parameters, largest)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _ask_all(finite: Tensor, stop: bool) -> tuple[bool, bool]:
    """(bad, stop), the same on every process. The one place in a step where the host waits for the device."""
    flags = torch.stack([~finite, torch.tensor(stop, device=finite.device)]).to(torch.int32)
    bad, stop = distributed.any_of(flags).bool().tolist()
    return bad, stop


def _is_due(run: Run, config: LoopConfig, stopping: bool) -> bool:
    if stopping or run.step == config.steps:
        return True
    # Not in the middle of bad steps: the last checkpoint stays one from which training went on well.
    return bool(config.checkpoint_every) and run.step % config.checkpoint_every == 0 and not run.bad_in_a_row


def _diverged(run: Run, checkpoints: Checkpoints | None) -> str:
    last = checkpoints.latest() if checkpoints is not None else None
    where = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
    return f"stopped at step {run.step}: {run.bad_in_a_row} steps in a row had a NaN or Inf loss or gradient; {where}"


# ------------------------------------------------------------------------------------------------ signals and reporting


class StopRequest:
    """Turns SIGTERM and SIGINT into a request to stop after the step; a second signal acts as it would have before.

    signal: the number that came, or None. agreed: all processes of the run know of it. The handlers that were there
    before are put back at the end. Outside the main thread, where Python allows no handlers, and with listen=False it
    does nothing.
    """

    def __init__(self, listen: bool = True) -> None:
        self.listen = listen
        self.signal: int | None = None
        self.agreed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if self.listen and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._request)
        return self

    def _request(self, number: int, frame: Any) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def __exit__(self, *exception: Any) -> None:
        self._restore()


class _Reporter:
    """Makes a row of metrics every ``log_every`` steps; knows the time."""

    def __init__(
        self,
        run: Run,
        config: LoopConfig,
        writer: MetricsWriter | None,
        progress: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.run, self.config, self.writer, self.progress = run, config, writer, progress
        self.since, self.steps = time.perf_counter(), 0

    def after_step(self, rate: float, norm: Tensor, bad: bool) -> None:
        run, config = self.run, self.config
        self.steps += 1
        if run.step % config.log_every and run.step != config.steps:
            return
        row: dict[str, Any] = {"step": run.step, "phase": run.phase, **run.meter.read(), "lr": rate}
        if not bad:
            row["grad_norm"] = norm.item()
        seconds = max(time.perf_counter() - self.since, 1e-9)
        batches = self.steps * config.accumulate * distributed.world_size() / seconds
        row["skipped"] = run.skipped
        if "tokens" in row:  # of a micro-batch, where one is a packed row
            row["tokens_per_second"] = row["tokens"] * batches
        else:
            row["images_per_second"] = config.batch_size * batches
        self.write(row, eta_seconds=seconds / self.steps * (config.steps - run.step))
        self.since, self.steps = time.perf_counter(), 0

    def write(self, row: dict[str, Any], **told: float) -> None:
        """told: numbers for whoever watches, not for the file."""
        if distributed.rank() == 0:
            if self.writer is not None:
                self.writer.write(row)
            if self.progress is not None:
                self.progress(row | {**told, "steps": self.config.steps})

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside does not count as training time."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began
