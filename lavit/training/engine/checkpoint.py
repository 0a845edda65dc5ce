"""Checkpoints of a run: everything that is needed to go on as if it had never stopped, whole or not there.

    checkpoints/constant.pt             tensors that training never changes (a frozen encoder), written once
    checkpoints/step-00000400/model.pt      all other parameters and buffers
                              optimizer.pt  the optimizer's state
                              rank-0.pt     for every process: generators, data position, open metrics
                              checkpoint.json  step, loop state, sizes of the files; written last

A checkpoint is made in a hidden folder, every file of it is synced to the disk, and one rename makes it visible. Files
are read with ``weights_only=True``: a checkpoint cannot run code.
"""

from __future__ import annotations

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

FORMAT = 1
MANIFEST = "checkpoint.json"
CONSTANT = "constant.pt"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or belongs to another run; the message names the file."""


class Checkpoints:
    """The checkpoints of one run in `folder`; only the newest `keep` stay (0: all).

    constant: prefixes of the model's tensors that never change. They are stored once instead of in every checkpoint.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 3, constant: Sequence[str] = ()) -> None:
        if keep < 0:
            raise ValueError(f"keep: expected a number >= 0, got {keep}")
        self.folder, self.keep, self.constant = Path(folder), keep, tuple(constant)

    # ------------------------------------------------------------------------------------------------------ writing

    def save(self, step: int, *, model: dict[str, Tensor], optimizer: dict, loop: dict, local: dict) -> Path:
        """Writes the checkpoint of `step`; every process calls it.

        model, optimizer: state dictionaries, the same on all processes (the first one writes). loop: a small
        dictionary that JSON can hold. local: this process's own state, of tensors and plain values.
        """
        final = self.folder / f"step-{step:08d}"
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
            sizes = {file.name: file.stat().st_size for file in sorted(hidden.iterdir())}
            manifest = {"format": FORMAT, "step": step, "world_size": distributed.world_size(), "loop": loop}
            with atomic_write(hidden / MANIFEST) as file:
                file.write(json.dumps(manifest | {"files": sizes}, indent=1).encode())
            replaced = self.folder / f".{final.name}.old.tmp"
            if final.exists():  # the same step again: moved aside, since a folder cannot be renamed over a full one
                shutil.rmtree(replaced, ignore_errors=True)
                os.replace(final, replaced)
            os.replace(hidden, final)
            sync_folder(self.folder)
            shutil.rmtree(replaced, ignore_errors=True)
            for path in self.all()[: -self.keep] if self.keep else []:
                shutil.rmtree(path, ignore_errors=True)
        distributed.barrier()
        return final

    def clear(self) -> None:
        """Removes what an earlier run left in the folder, half-written checkpoints included."""
        if distributed.rank() == 0:
            for path in [*self.all(), *self.folder.glob(".step-*.tmp")]:
                shutil.rmtree(path, ignore_errors=True)
            with suppress(FileNotFoundError):
                (self.folder / CONSTANT).unlink()
        distributed.barrier()

    # ------------------------------------------------------------------------------------------------------ reading

    def all(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        named = (path for path in self.folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name))
        return sorted((p for p in named if (p / MANIFEST).is_file()), key=lambda p: int(p.name[5:]))

    def latest(self) -> Path | None:
        """The newest checkpoint whose files are all there in full size; a damaged one is named and passed over."""
        for path in reversed(self.all()):
            problem = self._damage(path)
            if problem is None:
                return path
            logger.warning("passing over the damaged checkpoint %s: %s", path, problem)
        return None

    def _damage(self, path: Path) -> str | None:
        try:
            files = json.loads((path / MANIFEST).read_text())["files"]
        except (OSError, ValueError, KeyError, TypeError) as problem:
            return f"{MANIFEST} cannot be read ({problem})"
        for name, size in files.items():
            found = (path / name).stat().st_size if (path / name).is_file() else None
            if found != size:
                return f"{name} should have {size} bytes, has {'none' if found is None else found}"
        if self.constant and not (self.folder / CONSTANT).is_file():
            return f"{CONSTANT} is missing"
        return None

    def load(self, path: Path) -> dict[str, Any]:
        """``{"path", "step", "loop", "model", "optimizer", "local"}`` of one checkpoint, as `save` got them.

        CheckpointError: damaged, of another format, or written by another number of processes.
        """
        problem = self._damage(path)
        if problem is not None:
            raise CheckpointError(f"{path}: {problem}")
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path}: expected checkpoint format {FORMAT}, got {manifest['format']}")
        if manifest["world_size"] != distributed.world_size():
            raise CheckpointError(
                f"{path}: written by {manifest['world_size']} processes, this run has {distributed.world_size()}; "
                "data positions and generators cannot be divided anew"
            )
        model = _read(path / "model.pt")
        if self.constant:
            model |= _read(self.folder / CONSTANT)
        return {
            "path": path,
            "step": manifest["step"],
            "loop": manifest["loop"],
            "model": model,
            "optimizer": _read(path / "optimizer.pt"),
            "local": _read(path / f"rank-{distributed.rank()}.pt"),
        }


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
