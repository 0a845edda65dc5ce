"""Checkpoints of a run: everything that is needed to go on as if it had never stopped, whole or not there.

    checkpoints/constant.pt             tensors that training never changes (a frozen encoder), written once
    checkpoints/step-00000400/model.pt      all other parameters and buffers
                              optimizer.pt  the optimizer's state
                              rank-0.pt     for every process: generators, data position, open metrics
                              checkpoint.json  step, loop state, what it belongs to, sizes and checksums; written last
    checkpoints/best.json               the step with the lowest val_loss, of a run with validation

A checkpoint is made in a hidden folder, every file of it is synced to the disk, and one rename makes it visible. Files
are read with ``weights_only=True``: a checkpoint cannot run code. Nothing here deletes a checkpoint because another one
is to be resumed from: only newer ones (``keep``) and `Checkpoints.clear` do.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import random
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavit.data.atomic_write import atomic_write, sync_folder
from lavit.training.engine import distributed

logger = logging.getLogger(__name__)

FORMAT = 2  # 1 had no checksums and did not say what it belongs to
MANIFEST = "checkpoint.json"
CONSTANT = "constant.pt"
BEST = "best.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or belongs to another run; the message names the file."""


class Checkpoints:
    """The checkpoints of one run in `folder`; only the newest `keep` and the best stay (0: all).

    constant: prefixes of the model's tensors that never change. They are stored once instead of in every checkpoint.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 3, constant: Sequence[str] = ()) -> None:
        if keep < 0:
            raise ValueError(f"keep: expected a number >= 0, got {keep}")
        self.folder, self.keep, self.constant = Path(folder), keep, tuple(constant)
        self._of_constant: list[int | str] | None = None  # its checksum, which is computed once a run

    # ------------------------------------------------------------------------------------------------------ writing

    def save(
        self,
        step: int,
        *,
        model: dict[str, Tensor],
        optimizer: dict,
        loop: dict,
        local: dict,
        identity: dict[str, Any] | None = None,
        best: dict[str, Any] | None = None,
    ) -> Path:
        """Writes the checkpoint of `step`; every process calls it.

        model, optimizer: state dictionaries, the same on all processes (the first one writes). loop, identity: small
        dictionaries that JSON can hold, the second of what the state belongs to. local: this process's own state, of
        tensors and plain values. best: what is known of the best step so far, its "step" among it.
        """
        final = self.path(step)
        hidden = self.folder / f".{final.name}.tmp"
        first = distributed.rank() == 0
        if first:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(hidden, ignore_errors=True)
            hidden.mkdir()
            if self.constant and not (self.folder / CONSTANT).exists():
                _write(self.folder / CONSTANT, {k: v for k, v in model.items() if k.startswith(self.constant)})
        distributed.barrier()
        _write(hidden / f"rank-{distributed.rank()}.pt", local)
        if first:
            _write(hidden / "model.pt", {k: v for k, v in model.items() if not k.startswith(self.constant)})
            _write(hidden / "optimizer.pt", optimizer)
        distributed.barrier()
        if first:
            if self.constant and self._of_constant is None:
                self._of_constant = checksum(self.folder / CONSTANT)
            manifest = {
                "format": FORMAT,
                "step": step,
                "world_size": distributed.world_size(),
                "loop": loop,
                "identity": identity or {},
                "files": {file.name: checksum(file) for file in sorted(hidden.iterdir())},
                "constant": self._of_constant,
            }
            with atomic_write(hidden / MANIFEST) as file:
                file.write(json.dumps(manifest, indent=1).encode())
            replaced = self.folder / f".{final.name}.old.tmp"
            if final.exists():  # the same step again: moved aside, since a folder cannot be renamed over a full one
                shutil.rmtree(replaced, ignore_errors=True)
                os.replace(final, replaced)
            os.replace(hidden, final)
            sync_folder(self.folder)
            shutil.rmtree(replaced, ignore_errors=True)
            self.tell_best(best)
            # Those of later steps are damaged or of a branch that was left: they must not drive out good ones.
            past = [path for path in self.all() if int(path.name[5:]) <= step]
            for path in past[: -self.keep] if self.keep else []:
                if best is None or path != self.path(best["step"]):
                    shutil.rmtree(path, ignore_errors=True)
        distributed.barrier()
        return final

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def tell_best(self, best: dict[str, Any] | None) -> None:
        """Writes best.json, or removes it where there is no best. The first process alone calls it."""
        if best is None:
            (self.folder / BEST).unlink(missing_ok=True)
            return
        with atomic_write(self.folder / BEST) as file:
            file.write(json.dumps(best | {"checkpoint": self.path(best["step"]).name}, indent=1).encode())

    def clear(self) -> None:
        """Removes what an earlier run left in the folder, half-written checkpoints included."""
        if distributed.rank() == 0:
            for path in [*self.all(), *self.folder.glob(".step-*.tmp")]:
                shutil.rmtree(path, ignore_errors=True)
            for name in (CONSTANT, BEST):
                with suppress(FileNotFoundError):
                    (self.folder / name).unlink()
        self._of_constant = None
        distributed.barrier()

    # ------------------------------------------------------------------------------------------------------ reading

    def all(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        named = (path for path in self.folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name))
        return sorted((p for p in named if (p / MANIFEST).is_file()), key=lambda p: int(p.name[5:]))

    def latest(self) -> Path | None:
        """The newest checkpoint whose files are all there, unchanged; a damaged one is named and passed over.

        Every process calls it; the first one reads the files.
        """
        return self._search()[0]

    def to_resume(self) -> Path:
        """As `latest`. CheckpointError, which says what is there and what is wrong with it, where there is none."""
        found, problems = self._search()
        if found is not None:
            return found
        run = self.folder.parent
        beginning = (
            f"to begin anew, say --overwrite instead of --resume: what is in {run} is moved aside then, and deleted "
            "when the new model is saved"
        )
        if problems:
            told = "; ".join(reversed(problems))
            raise CheckpointError(f"{self.folder}: no checkpoint is whole ({told}); {beginning}")
        if not run.is_dir():
            raise CheckpointError(f"{run}: there is no such folder to resume from; leave out --resume to begin there")
        held = ", ".join(sorted(path.name for path in run.iterdir() if not path.name.startswith("."))) or "nothing"
        raise CheckpointError(
            f"{self.folder}: there is no checkpoint to resume from ({run} holds {held}); {beginning}"
        )

    def _search(self) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint, and what is wrong with those after it, newest first."""
        problems: list[str] = []
        for path in reversed(self.all()):
            problem = self._damage(path) if distributed.rank() == 0 else None
            if distributed.first_says(problem is None):
                return path, problems
            problems.append(f"{path.name}: {problem or 'damaged, as the first process tells'}")
            if problem is not None:
                logger.warning("passing over the damaged checkpoint %s: %s", path, problem)
        return None, problems

    def _damage(self, path: Path) -> str | None:
        """What is wrong with the files of a checkpoint; None if nothing is."""
        try:
            manifest = json.loads((path / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            return f"{MANIFEST} cannot be read ({error})"
        if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
            return f"{MANIFEST} is no manifest"
        if manifest["format"] != FORMAT:
            return f"expected checkpoint format {FORMAT}, got {manifest['format']}"
        kinds = {"step": int, "world_size": int, "loop": dict, "identity": dict, "files": dict}
        wrong = [name for name, kind in kinds.items() if not isinstance(manifest.get(name), kind)]
        if wrong:
            return f"{MANIFEST} has no {' and no '.join(wrong)}"
        if manifest["step"] != int(path.name[5:]):
            return f"{MANIFEST} is of step {manifest['step']}"
        ranks = [f"rank-{rank}.pt" for rank in range(manifest["world_size"])]
        for name in {"model.pt", "optimizer.pt", *ranks} - manifest["files"].keys():
            return f"{MANIFEST} does not list {name}"
        for name, told in manifest["files"].items():
            if problem := _difference(path / name, told):
                return problem
        return _difference(self.folder / CONSTANT, manifest.get("constant")) if self.constant else None

    def load(self, path: Path) -> dict[str, Any]:
        """``{"path", "step", "loop", "identity", "model", "optimizer", "local"}`` of one checkpoint, as `save` got
        them; its files are those that `latest` has read.

        CheckpointError: a file that cannot be read, or written by another number of processes.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            step, world, loop, identity = (manifest[name] for name in ("step", "world_size", "loop", "identity"))
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{path}: {self._damage(path) or f'{MANIFEST} cannot be read'}") from None
        if world != distributed.world_size():
            raise CheckpointError(
                f"{path}: written by {world} processes, this run has {distributed.world_size()}; "
                "data positions and generators cannot be divided anew"
            )
        return {
            "path": path,
            "step": step,
            "loop": loop,
            "identity": identity,
            "model": self._model(path),
            "optimizer": _read(path / "optimizer.pt"),
            "local": _read(path / f"rank-{distributed.rank()}.pt"),
        }


    def load_model(self, step: int) -> dict[str, Tensor]:
        """The model's tensors of the checkpoint of a step. CheckpointError where it is not whole."""
        path = self.path(step)
        if not path.is_dir():
            raise CheckpointError(f"{path}: there is no such checkpoint")
        if (problem := self._damage(path)) is not None:
            raise CheckpointError(f"{path}: {problem}")
        return self._model(path)

    def _model(self, path: Path) -> dict[str, Tensor]:
        model = _read(path / "model.pt")
        return model | _read(self.folder / CONSTANT) if self.constant else model


# ----------------------------------------------------------------------------------------------------------- generators


def generator_state() -> dict[str, Any]:
    """The state of every global generator: torch (CPU, all CUDA devices), numpy, Python."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, normal = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(words, dtype=torch.int64), normal],
    }


def set_generator_state(state: dict[str, Any]) -> None:
    """Puts back what `generator_state` returned. CUDA generators of devices that are not here are left out."""
    torch.set_rng_state(state["torch"])
    for index, cuda in enumerate(state["cuda"][: torch.cuda.device_count()] if torch.cuda.is_available() else []):
        torch.cuda.set_rng_state(cuda, index)
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, normal = state["python"]
    random.setstate((version, tuple(words.tolist()), normal))


# ---------------------------------------------------------------------------------------------------------------- files


def checksum(path: Path) -> list[int | str]:
    """[bytes, 32 hexadecimal digits] of a file."""
    found, size = hashlib.blake2b(digest_size=16), 0
    with open(path, "rb") as file:
        while part := file.read(1 << 22):
            found.update(part)
            size += len(part)
    return [size, found.hexdigest()]


def _difference(path: Path, told: Any) -> str | None:
    if not (isinstance(told, list) and len(told) == 2 and isinstance(told[0], int)):
        return f"{MANIFEST} has no size and checksum of {path.name}"
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != told[0]:
        return f"{path.name} should have {told[0]} bytes, has {path.stat().st_size}"
    if checksum(path) != told:
        return f"{path.name} has changed: its checksum is not that in {MANIFEST}"
    return None


def _write(path: Path, value: Any) -> None:
    with atomic_write(path) as file:
        torch.save(value, file)


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: the file is missing") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as problem:
        raise CheckpointError(f"{path}: cannot be read ({str(problem).splitlines()[0]})") from None
