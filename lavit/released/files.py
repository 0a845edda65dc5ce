"""The files of a release: which there are, and how their tensors are read without running any code from them."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavit.tokenizer.pretrained import check_fit, compare

# The release's files of `visual_tokenizer/`.
ENCODER_FILE, TOKENIZER_FILE = "eva_vitg_psz14.bin", "tokenizer_encoder.bin"
DECODER_FILES = {"lowres": "tokenizer_decoder.bin", "highres": "highres_tokenizer_decoder.bin"}


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
    """What `torch.save` has written, read without running any code from it. ValueError: damaged or not ``wanted``."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        first_line = str(error).split("\n")[0]
        raise ValueError(f"{path}: damaged, cut short, or not {wanted} ({first_line})") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A `.bin` file of named tensors."""
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


def fill(
    model: torch.nn.Module,
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    source: str,
    absent: set[str] | frozenset[str] = frozenset(),
) -> None:
    """Put tensors into a model built on the meta device; every name and shape must fit, but for those in ``absent``."""
    info = compare(model, state)
    info["missing_keys"] -= absent
    check_fit(f"{source}: the tensors do not fit the model", info)
    cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    model.load_state_dict(cast, strict=False, assign=True)
