"""The files of a release: which there are, and how their tensors are read without running any code from them."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Collection, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavit.released.memory import MappedFiles, owned
from lavit.tokenizer.pretrained import check_fit, compare

logger = logging.getLogger(__name__)

# The release's files of `visual_tokenizer/`.
ENCODER_FILE, TOKENIZER_FILE = "eva_vitg_psz14.bin", "tokenizer_encoder.bin"
DECODER_FILES = {"lowres": "tokenizer_decoder.bin", "highres": "highres_tokenizer_decoder.bin"}

NOT_OF_THE_CONTENT = (FileNotFoundError, PermissionError, IsADirectoryError, MemoryError)
"""Errors of reading a file that do not tell that it is damaged."""


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged or no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def tokenizer_folder(folder: str | PathLike[str]) -> Path:
    inner = Path(folder) / "visual_tokenizer"
    return inner if inner.is_dir() else Path(folder)


def load_bin(path: Path, wanted: str) -> Any:
    """What `torch.save` has written, read without running any code from it. ValueError: damaged or not ``wanted``.

    Tensors may lie in the file itself, mapped into memory: see :func:`lavit.released.memory.owned`.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except NOT_OF_THE_CONTENT:
        raise
    except Exception as error:  # a damaged pickle breaks in as many ways as there are
        first_line = str(error).split("\n")[0]
        raise ValueError(f"{path}: damaged, cut short, or not {wanted} ({first_line})") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A `.bin` file of named tensors, as :func:`load_bin` reads it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the release's folder holds it")
    state = load_bin(path, "a file of tensors")
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(state).__name__} with other contents")
    return dict(state)


def unprefixed(state: Mapping[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
    """Names without the prefix, where they have it; ValueError where one is there both with and without."""
    twice = sorted(name for name in state if prefix + name in state)
    if twice:
        raise ValueError(f"{path}: expected every tensor once, got with and without {prefix!r}: {', '.join(twice)}")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def say_unused(path: Path, names: Iterable[str], why: str) -> None:
    """A line of the log that names tensors which are left where they are."""
    if found := sorted(names):
        logger.info("%s: not used, %s: %s", path, why, ", ".join(found))


def check_loaded(source: Path, info: Mapping[str, Any], old: str) -> None:
    """As :func:`check_fit`, of a model that transformers has loaded. Surplus tensors whose names end in ``old``, which
    former versions stored beside the weights, are named in the log."""
    left = {name for name in info["unexpected_keys"] if name.endswith(old)}
    unexpected = [name for name in info["unexpected_keys"] if name not in left]
    check_fit(f"{source}: the tensors do not fit the model", {**info, "unexpected_keys": unexpected})
    say_unused(source, left, "config.json says them")


def lacks(place: Path, names: tuple[str, ...]) -> str | None:
    """Where a model's weights should be, in one of these files, if they are not."""
    if any((place / name).is_file() for name in names):
        return None
    return f"{place / names[0]} (or {', '.join(names[1:])})"


def check_tensors(
    model: torch.nn.Module,
    state: Mapping[str, Tensor],
    source: str | Path,
    absent: Collection[str] = (),
) -> None:
    """ValueError naming the file where its tensors are not those of a model: all names at fault, and what they tell.

    absent: names that the file need not hold.
    """
    info = compare(model, state)
    known = len(state) - len(info["unexpected_keys"])
    info["missing_keys"] -= set(absent)
    if not known:
        first = ", ".join(sorted(state)[:3]) or "none"
        raise ValueError(f"{source}: holds none of the model's tensors (it has {first}): a file of another model?")
    hint = " (a file of another size or release?)" if 2 * len(info["mismatched_keys"]) > known else ""
    check_fit(f"{source}: the tensors do not fit the model{hint}", info)


def put(
    model: torch.nn.Module,
    state: dict[str, Tensor],
    dtype: torch.dtype,
    device: torch.device | str | None = None,
    in_float32: Collection[str] = (),
) -> None:
    """Put tensors that fit into a model built on the meta device, in memory of its own; ``state`` is used up.

    Floats become ``dtype``, but for those whose names begin with one of ``in_float32``, which are float32 where
    ``dtype`` is less.
    """
    precise = torch.promote_types(dtype, torch.float32)
    mapped, copies = MappedFiles(), {}
    for name in list(state):
        wanted = precise if name.startswith(tuple(in_float32)) else dtype
        copies[name] = owned(state.pop(name), mapped, wanted, device)
    model.load_state_dict(copies, strict=False, assign=True)
