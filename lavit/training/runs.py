"""What the runs of every stage share: the output folder, the model saved whole, the words of the command."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from lavit.training import config as configuration
from lavit.training import distributed
from lavit.training.checkpoint import Checkpoints

logger = logging.getLogger(__name__)

CONFIG_FILE = "training.yaml"

Config = TypeVar("Config")


class Saved(Protocol):
    """A model, a processor, a text tokenizer."""

    def save_pretrained(self, folder: Any, /) -> Any: ...


def open_output(
    config: Any, output: Path, checkpoints: Checkpoints, resume: bool, overwrite: bool
) -> dict[str, Any] | None:
    """Makes the folder ready and returns the checkpoint to go on from, if any."""
    latest = checkpoints.latest() if resume else None
    occupied = not resume and not overwrite and (bool(checkpoints.all()) or (output / "config.json").exists())
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
    """Saves a model and what belongs to it into a folder. ``config.json``, without which nothing loads, comes last:
    what was not written to its end cannot be taken for a model."""
    hidden = folder / ".model.tmp"
    shutil.rmtree(hidden, ignore_errors=True)
    for part in parts:
        part.save_pretrained(hidden)
    (folder / "config.json").unlink(missing_ok=True)
    for file in sorted(hidden.iterdir(), key=lambda path: path.name == "config.json"):
        with open(file, "rb") as written:
            os.fsync(written.fileno())
        os.replace(file, folder / file.name)
    hidden.rmdir()


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
