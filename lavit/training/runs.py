"""What the runs of every stage share: the output folder, the model saved whole, the words of the command."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer
from lavit.training import config as configuration
from lavit.training import distributed
from lavit.training.checkpoint import Checkpoints
from lavit.training.loop import Run, StepFunction, StopRequest, TrainingDiverged, train
from lavit.training.metrics import MetricsWriter, progress_line
from lavit.training.schedule import learning_rate

logger = logging.getLogger(__name__)

CONFIG_FILE = "training.yaml"

INDEX = ("config.json", "model_index.json")
"""Without the one a model does not load, without the other a pipeline."""

Progress = Callable[[dict[str, Any]], None]


class Finished(Protocol):
    """The result of a run. stopped_by: the signal that stopped it, or None."""

    stopped_by: int | None


Config = TypeVar("Config")
Result = TypeVar("Result", bound=Finished)


class Saved(Protocol):
    """A model, a processor, a text tokenizer."""

    def save_pretrained(self, folder: Any, /) -> Any: ...


def open_output(
    config: Any, output: Path, checkpoints: Checkpoints, resume: bool, overwrite: bool
) -> dict[str, Any] | None:
    """Makes the folder ready and returns the checkpoint to go on from, if any."""
    latest = checkpoints.latest() if resume else None
    occupied = not resume and not overwrite and (
        bool(checkpoints.all()) or any((output / name).exists() for name in INDEX)
    )
    if occupied:
        raise FileExistsError(f"output: {output} holds a run; --resume goes on with it, --overwrite replaces it")
    distributed.barrier()  # all have looked before the first one writes
    saved = None if latest is None else checkpoints.load(latest)
    if resume and latest is None:
        logger.warning("%s: no checkpoint to resume from, starting from the beginning", output)
    if latest is None:
        checkpoints.clear()
    if distributed.rank() == 0:
        output.mkdir(parents=True, exist_ok=True)
        configuration.save(config, output / CONFIG_FILE)
    return saved


def save_whole(folder: Path, *parts: Saved) -> None:
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


def processor_of(folder: str | None, tokenizer: LaVITTokenizer) -> LaVITImageProcessor:
    """The image processor beside the model in a folder, else CLIP's with the tokenizer's size."""
    if folder is not None and (Path(folder) / "preprocessor_config.json").is_file():
        return LaVITImageProcessor.from_pretrained(folder)
    return LaVITImageProcessor(size=tokenizer.config.image_size)


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def read_words(
    cls: type[Config], words: Sequence[str], output: str, recipe_file: Callable[[str], Path]
) -> tuple[Config, set[str]]:
    """The configuration and the flags of a training command: the resumed run's own file, else the recipe of the preset,
    else --config; then the words. output: the folder where none is given."""
    given, flags = configuration.words(cls, words, flags=("resume", "overwrite"))
    if flags >= {"resume", "overwrite"}:
        raise configuration.ConfigError("--resume, --overwrite: expected at most one of the two")
    given.setdefault("output", output)
    own = Path(given["output"]) / CONFIG_FILE
    base: str | Path = own if "resume" in flags and own.is_file() else recipe_file(given.get("preset", "small"))
    base = given.pop("config", base)
    return configuration.load(cls, base, given), flags


def drive(
    run: Run,
    step: StepFunction,
    config: Any,
    checkpoints: Checkpoints | None,
    progress: Progress | None,
    *,
    resumed: bool,
    before_step: Callable[[Run], None] | None = None,
) -> tuple[StopRequest, list[dict[str, Any]]]:
    """The loop of a stage, with its metrics in the output folder, if there is one. Returns how it stopped, and the rows
    of metrics, those of before a resumption too."""
    writer = None
    if checkpoints is not None and distributed.rank() == 0:
        resume_at = run.step if resumed else None
        writer = MetricsWriter(Path(config.output), resume_at=resume_at, tensorboard=config.tensorboard)
    history: list[dict[str, Any]] = writer.rows if writer is not None else []
    try:
        stop = train(
            run,
            step,
            config.loop,
            learning_rate=lambda number: learning_rate(number, config.loop.steps, config.schedule),
            before_step=before_step,
            checkpoints=checkpoints,
            writer=writer,
            progress=_keeper(history, writer, progress),
        )
    finally:
        if writer is not None:
            writer.close()
    return stop, history


def _keeper(history: list[dict[str, Any]], writer: MetricsWriter | None, progress: Progress | None) -> Progress:
    """What the loop gives every row of metrics to: into the history, where no writer keeps it, and to the caller."""

    def keep(row: dict[str, Any]) -> None:
        if writer is None:
            history.append({k: v for k, v in row.items() if k not in ("eta_seconds", "steps")})
        if progress is not None:
            progress(row)

    return keep


def command(
    name: str,
    argv: Sequence[str] | None,
    cls: type[Config],
    usage: str,
    recipe_file: Callable[[str], Path],
    train_stage: Callable[..., Result],
    tell: Callable[[Config, Result], None],
) -> int:
    """``lavit train NAME``; returns the exit code. ValueError and OSError for wrong use or input.

    train_stage: gets the configuration, progress, resume and overwrite. tell: says how it ended, on the first process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "--help" in words or "-h" in words:
        print(usage + configuration.describe(cls))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config, flags = read_words(cls, words, f"runs/{name}", recipe_file)
    try:
        result = train_stage(config, progress=_print, resume="resume" in flags, overwrite="overwrite" in flags)
    except TrainingDiverged as problem:
        print(f"lavit train {name}: {problem}", file=sys.stderr)
        return 1
    if distributed.launched_rank() == 0:
        tell(config, result)
    return 0 if result.stopped_by is None else 128 + result.stopped_by


def _print(row: dict[str, Any]) -> None:
    print(progress_line(row, row["steps"]), flush=True)


def tell_skipped(what: str, skipped: Sequence[tuple[str, str]]) -> None:
    """Names the first items that could not be used. what: as in "3 images could not be read"."""
    if skipped:
        print(f"{len(skipped)} {what}:")
        for name, reason in skipped[:20]:
            print(f"  {name}: {reason}")
