"""Held-out numbers while a run trains, and its best model.

Validation runs before each checkpoint and at the end of a run. It changes nothing: random generators and modes are put
back, no statistics move, so that a run ends with the same bits with it and without. Its numbers go to metrics.jsonl as
a row of their own, under names that begin with ``val_``. The checkpoint with the lowest ``val_loss`` is kept
(checkpoints/best.json names it), and ``best/`` in the output folder holds its model at the end.
"""

from __future__ import annotations

import filecmp
import hashlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from lavit.data.image_folder import ImageFiles, ImageFolder
from lavit.data.images import ImageError
from lavit.data.split import divided, name_of, sample
from lavit.training.engine import distributed
from lavit.training.engine.checkpoint import CheckpointError, generator_state, set_generator_state
from lavit.training.engine.validation_settings import check_apart

Run = Any
"""A `lavit.training.engine.loop.Run`; the loop is above this module."""

logger = logging.getLogger(__name__)

PREFIX = "val_"
BEST = "best"
"""Folder of the best model, in the output folder."""


class Validation(Protocol):
    """What a stage measures on held-out data."""

    fingerprint: str
    """Of the data: numbers of other data are not compared."""

    def __call__(self, run: Run) -> Mapping[str, float]:
        """Numbers by name, "loss" among them, the lower the better. The first process alone calls it, with the model in
        evaluation mode and without gradients."""


def divided_images(config: Any) -> tuple[ImageFiles, ImageFiles | None]:
    """The image files of ``config.data`` to train on, and at most ``validation_images`` held-out ones: of the folder
    ``config.validation``, or the share that is held out of the data. ValueError or OSError for what cannot be."""
    folder = ImageFolder(config.data)
    if config.validation is not None:
        check_apart(config.data, config.validation)
        other = ImageFolder(config.validation)
        return folder, _readable(ImageFiles(other.root, sample(other.paths, other.root, config.validation_images)))
    if not config.validation_share:
        return folder, None
    train, held = divided(folder.paths, folder.root, config.validation_share)
    if not train or not held:
        what = "none for training" if not train else "none to hold out"
        raise ValueError(f"validation_share: {config.validation_share} of {len(folder)} images leaves {what}")
    chosen = sample(held, folder.root, config.validation_images)
    return ImageFiles(folder.root, train), _readable(ImageFiles(folder.root, chosen))


def _readable(files: ImageFiles) -> ImageFiles:
    """The files. ImageError where none of them can be read: before a run begins, not at its first checkpoint."""
    first = ""
    for number in range(len(files)):
        try:
            files[number]
            return files
        except (ImageError, OSError) as error:
            first = first or str(error)
    raise ImageError(f"none of the {len(files)} held-out images can be read, the first: {first}", "validation")


def count_of_scenes(config: Any) -> int:
    """How many scenes of the shapes world's test part a run looks at; 0: none."""
    return min(config.validation_images, math.ceil(config.validation_share * config.scenes))


def fingerprint_of(paths: Sequence[Path], root: str | Path) -> str:
    """Of held-out files, by their names."""
    names = b"\0".join(sorted(name_of(path, root) for path in paths))
    return hashlib.blake2b(names, digest_size=16).hexdigest()


def measure(run: Run, validation: Validation, bf16: bool = False) -> dict[str, float]:
    """The numbers of a validation with their prefix; the run is left as it was. No number, but a line in the log, where
    the held-out files cannot be read any more: that ends no run. The first process measures, whose model is that of
    all; the others wait for it (`distributed.PATIENCE`) and get the numbers. bf16: with autocast, as the run trains."""
    numbers: dict[str, float] = {}
    if distributed.rank() == 0:
        kind = next(run.model.parameters()).device.type
        with undisturbed(run.model), torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=bf16):
            run.model.eval()
            try:
                numbers = {PREFIX + name: float(value) for name, value in validation(run).items()}
            except (ImageError, OSError) as problem:
                logger.warning("step %d: nothing is measured on held-out data: %s", run.step, problem)
    return distributed.from_first(numbers)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Puts back random generators and the modes of all parts."""
    generators = generator_state()
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        set_generator_state(generators)


def better(
    numbers: Mapping[str, float], step: int, phase: str, of: str, best: dict[str, Any] | None
) -> dict[str, Any] | None:
    """The best so far, with these numbers; None where there is none. A loss that is NaN or infinite is never the best.
    Numbers of another phase of the run have another meaning, as those of other data have: the newer ones count then."""
    loss = numbers[PREFIX + "loss"]
    if best is not None and (best["phase"], best["of"]) != (phase, of):
        best = None
    if not math.isfinite(loss) or (best is not None and loss >= best[PREFIX + "loss"]):
        return best
    return {"step": step, PREFIX + "loss": loss, "phase": phase, "of": of}


class Saved(Protocol):
    def save_pretrained(self, folder: Any, /) -> Any: ...


def save_best(run: Run, output: Path, parts: Sequence[Saved], save: Callable[..., Any]) -> None:
    """Saves the model of the best checkpoint into ``best/``; where the last step is the best, its files are hard links
    to those of the output folder. The first process alone calls it, at the end of a run.

    parts: what is saved, of the run's model or made of it. save: of a folder and the parts.
    """
    target = output / BEST
    forget_best(output)
    if run.best is None or run.checkpoints is None:
        return
    if run.best["step"] == run.step:
        target.mkdir()
        save(target, *parts)
        _link_twins(target, output)
        return
    try:
        state = run.checkpoints.load_model(run.best["step"])
    except CheckpointError as problem:
        logger.warning("the best model is not saved: %s", problem)
        return
    last = {name: value.detach().clone() for name, value in run.model.state_dict().items()}
    try:
        run.model.load_state_dict(state)
        target.mkdir()
        save(target, *parts)
    finally:
        run.model.load_state_dict(last)


def _link_twins(folder: Path, other: Path) -> None:
    """Makes files that both folders have, with the same contents, one file on the disk, where the file system can."""
    for path in sorted(folder.rglob("*")):
        twin = other / path.relative_to(folder)
        if path.is_file() and twin.is_file() and filecmp.cmp(path, twin, shallow=False):
            hidden = path.with_name(f".{path.name}.tmp")
            with suppress(OSError):
                os.link(twin, hidden)
                os.replace(hidden, path)


def forget_best(output: Path) -> None:
    """Removes the best model that an earlier run has left."""
    shutil.rmtree(output / BEST, ignore_errors=True)
