"""What a run of any stage is made of, around the loop: its processes and generators, its output folder, and the
model that is saved at its end."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lavit.training.engine import config as configuration
from lavit.training.engine import distributed, replaced
from lavit.training.engine.checkpoint import Checkpoints, generator_state, set_generator_state
from lavit.training.engine.identity import settings_of
from lavit.training.engine.lock import LockedError, locked
from lavit.training.engine.loop import LookAhead, Run, StepFunction, StopRequest, train
from lavit.training.engine.metrics import MetricsWriter
from lavit.training.engine.recipe import CONFIG_FILE, CacheConfig
from lavit.training.engine.replaced import INDEX
from lavit.training.engine.schedule import learning_rate
from lavit.training.engine.validation import Validation, forget_best, save_best

logger = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]


@dataclass(kw_only=True)
class Finished:
    """What a run of any stage leaves behind, besides its model.

    history: rows of metrics with step, phase, loss, lr, grad_norm, skipped (bad steps so far), and those of the stage.
    path: folder of the saved model, None if nothing was written or the run was stopped.
    stopped_by: the signal that stopped the run, or None.
    """

    history: list[dict[str, Any]]
    path: Path | None
    stopped_by: int | None = None


class Saved(Protocol):
    """A model, a processor, a text tokenizer."""

    def save_pretrained(self, folder: Any, /) -> Any: ...


class Session(ExitStack):
    """What is held while a run lasts: its device, and its output folder, in which no other run writes."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def open_output(
        self,
        config: Any,
        resume: bool,
        overwrite: bool,
        constant: Sequence[str] = (),
        encoder_first: bool = False,
    ) -> tuple[Checkpoints | None, dict[str, Any] | None]:
        """The checkpoints of the run, and the one to go on from. None for what there is not. Of what an earlier run
        left nothing is deleted: one that is to be replaced is moved aside (`engine.replaced`), and put back if this
        session ends with nothing to go on from.

        constant: prefixes of the model's tensors that never change. encoder_first: as `replaced.set_aside` takes it.
        Raises FileExistsError for a folder that holds a run already, unless that goes on or is replaced, LockedError
        where another run is writing there, CheckpointError where there is nothing whole to resume from.
        """
        if config.output is None:
            return None, None
        output = Path(config.output)
        checkpoints = Checkpoints(output / "checkpoints", keep=config.loop.keep_checkpoints, constant=constant)
        if resume and not output.is_dir():
            checkpoints.to_resume()  # says so
        self._lock(output)
        first = distributed.rank() == 0
        if first and replaced.recover(output):
            logger.info("%s: what was to replace the run here left nothing: the run is in its place again", output)
        distributed.barrier()
        occupied = checkpoints.all() or any((output / name).exists() for name in INDEX)
        if occupied and not resume and not overwrite:
            aside = output / replaced.ASIDE
            before = f" (the run that it was to replace is in {aside} until it has ended)" if aside.is_dir() else ""
            raise FileExistsError(
                f"output: {output} holds a run{before}; --resume goes on with it, --overwrite replaces it"
            )
        saved = checkpoints.load(checkpoints.to_resume()) if resume else None
        distributed.barrier()  # all have looked before the first one writes
        if occupied and overwrite and first:
            self.callback(_put_back_unless_begun, output)
            settings = configuration.to_dict(config)
            if not replaced.begins_from(settings, output):
                replaced.set_aside(output, settings, encoder_first)
        distributed.barrier()
        return checkpoints, saved

    def _lock(self, output: Path) -> None:
        problem: Exception | None = None
        if distributed.rank() == 0:
            try:
                self.enter_context(locked(output))
            except OSError as error:
                problem = error
        if not distributed.first_says(problem is None):
            raise problem or LockedError(f"output: the first process cannot write in {output}")


@contextmanager
def session(device: str) -> Iterator[Session]:
    """A run on a device, inside the group of its processes. The caller's random generators are left as they were."""
    picked = distributed.pick_device(device)
    generators = generator_state()
    try:
        with distributed.process_group(picked), Session(picked) as opened:
            yield opened
    finally:
        set_generator_state(generators)


def _put_back_unless_begun(output: Path) -> None:
    if replaced.recover(output):
        logger.info("%s: nothing new is there to go on from: the earlier run is in its place again", output)


def cache_folder(cache: CacheConfig, output: str | None) -> Path | None:
    """Where features are kept, None where they are not. Raises ValueError where there is no place for them."""
    if not cache.enabled:
        return None
    if cache.folder is None and output is None:
        raise ValueError("cache.folder: expected a folder for the features, since the run has no output folder")
    return Path(cache.folder or Path(output or ".") / "features")


def run_stage(
    run: Run,
    step: StepFunction,
    config: Any,
    checkpoints: Checkpoints | None,
    saved: dict[str, Any] | None,
    progress: Progress | None,
    *,
    before_step: Callable[[Run], None] | None = None,
    look_ahead: LookAhead | None = None,
    validation: Validation | None = None,
    opening: dict[str, Any] | None = None,
    at_start: Callable[[Path], None] | None = None,
    allow_changes: bool = False,
) -> tuple[StopRequest, list[dict[str, Any]]]:
    """The loop of a stage, from `saved` on if that is not None, with its metrics in the output folder, if there is one.
    Returns how it stopped, and the rows of metrics, those of before a resumption too.

    before_step, look_ahead, validation: of `train`. opening: of `MetricsWriter`. at_start: writes what a new run needs
    beside its checkpoints; gets their folder. allow_changes: of `Run.load`.
    """
    run.settings = settings_of(config)
    if saved is not None:
        run.load(saved, allow_changes=allow_changes)
        if validation is not None and run.best is not None and run.best["of"] != validation.fingerprint:
            logger.info("the held-out data are others than before: the best model so far is forgotten")
            run.best = None
    run.checkpoints = checkpoints
    distributed.barrier()  # all have accepted before the first one writes
    writer = None
    if checkpoints is not None:
        if saved is None:
            if distributed.rank() == 0 and replaced.holds_run(Path(config.output)):  # the run has begun from it
                replaced.set_aside(Path(config.output), configuration.to_dict(config))
            checkpoints.clear()
        if distributed.rank() == 0:
            _begin(Path(config.output), checkpoints.folder, config, at_start if saved is None else None)
            checkpoints.tell_best(run.best)
            resume_at = run.step if saved is not None else None
            options: dict[str, Any] = {"resume_at": resume_at, "opening": opening, "tensorboard": config.tensorboard}
            writer = MetricsWriter(Path(config.output), **options)
    history: list[dict[str, Any]] = writer.rows if writer is not None else []
    if opening is not None and writer is None:
        history.append({"step": 0, **opening})

    def keep(row: dict[str, Any]) -> None:
        if writer is None:
            history.append({k: v for k, v in row.items() if k not in ("eta_seconds", "steps")})
        if progress is not None:
            progress(row)

    try:
        stop = train(
            run,
            step,
            config.loop,
            learning_rate=lambda number: learning_rate(number, config.loop.steps, config.schedule),
            before_step=before_step,
            look_ahead=look_ahead,
            validation=validation,
            checkpoints=checkpoints,
            writer=writer,
            progress=keep,
        )
    finally:
        if writer is not None:
            writer.close()
    return stop, history


def _begin(output: Path, folder: Path, config: Any, at_start: Callable[[Path], None] | None) -> None:
    """From here on the folder is this run's. A model that it has saved before it was made longer is none any more:
    whoever opens the folder before this run has ended shall not get it."""
    for name in INDEX:
        (output / name).unlink(missing_ok=True)
    forget_best(output)
    folder.mkdir(parents=True, exist_ok=True)
    if at_start is not None:
        at_start(folder)
    configuration.save(config, output / CONFIG_FILE)


def finish(run: Run, config: Any, *parts: Saved) -> Path | None:
    """Saves the model and what belongs to it into the output folder, if there is one and the run reached its end;
    returns where."""
    path = Path(config.output) if config.output is not None and run.step >= config.loop.steps else None
    if path is not None and distributed.rank() == 0:
        save_model(path, *parts)
        save_best(run, path, parts, save_model)
        replaced.discard(path)
    distributed.barrier()
    return path


def save_model(folder: Path, *parts: Saved) -> None:
    """Saves a model and what belongs to it, or a pipeline, into a folder. The file without which nothing loads comes
    last (`INDEX`): what was not written to its end cannot be taken for a model."""
    hidden = folder / ".model.tmp"
    shutil.rmtree(hidden, ignore_errors=True)
    for part in parts:
        part.save_pretrained(hidden)
    for name in INDEX:
        (folder / name).unlink(missing_ok=True)
    for entry in sorted(hidden.iterdir(), key=lambda path: path.name in INDEX):
        for file in [entry] if entry.is_file() else [path for path in entry.rglob("*") if path.is_file()]:
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        if entry.is_dir():
            shutil.rmtree(folder / entry.name, ignore_errors=True)
        os.replace(entry, folder / entry.name)
    hidden.rmdir()


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
