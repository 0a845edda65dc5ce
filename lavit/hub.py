"""Released checkpoints: from the release's folders of `.bin` files to this library's models."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavit.tokenizer.configuration import LaVITTokenizerConfig
from lavit.tokenizer.decoder import TokenDecoder
from lavit.tokenizer.model import LaVITTokenizer, describe_tensors

# The release's files of `visual_tokenizer/`, and the prefix under which their names appear in a LaVITTokenizer.
ENCODER_FILE, TOKENIZER_FILE = "eva_vitg_psz14.bin", "tokenizer_encoder.bin"
DECODER_FILES = {"lowres": "tokenizer_decoder.bin", "highres": "highres_tokenizer_decoder.bin"}

# What training adds to a codebook and the release does not have.
OWN_TENSORS = {"quantize.cluster_size", "quantize.updates"}


def load_released_tokenizer(
    folder: str | PathLike[str],
    *,
    config: LaVITTokenizerConfig | None = None,
    decoder: str = "lowres",
    dtype: torch.dtype = torch.float32,
) -> LaVITTokenizer:
    """The released tokenizer from its folder `visual_tokenizer/`, or from a folder that holds one.

    config: sizes of another model in the same layout; by default the release's (preset "lavit-g"). Its merge is set to
        "dense", the release's exact formula, and its decoder_condition to ``decoder``.
    decoder: "lowres" (condition of an SD 1.5 U-Net) or "highres" (of an SDXL U-Net): which decoder file is read.
    dtype: of the weights.

    The encoder's weights may be in `eva_vitg_psz14.bin`, in `tokenizer_encoder.bin` or in both (the latter counts).
    Raises FileNotFoundError for a missing file and ValueError for a damaged one, or when tensors are missing,
    unexpected or of another shape: all of them are named.
    """
    if decoder not in DECODER_FILES:
        raise ValueError(f"decoder: expected one of {', '.join(DECODER_FILES)}, got {decoder!r}")
    place = tokenizer_folder(folder)
    settings = (config or LaVITTokenizerConfig.preset("lavit-g")).to_dict()
    settings.update(merge="dense", decoder_condition=decoder)
    state = prefixed(read_tensors(place / DECODER_FILES[decoder]), "decoder.")
    if (place / ENCODER_FILE).exists():
        state.update(prefixed(read_tensors(place / ENCODER_FILE), "encoder."))
    state.update(read_tensors(place / TOKENIZER_FILE))
    with torch.device("meta"):
        model = LaVITTokenizer(LaVITTokenizerConfig(**settings))
    fill(model, state, dtype, str(place), absent=OWN_TENSORS)
    model.quantize.reset_statistics()
    return model.eval()


def load_released_decoder(
    folder: str | PathLike[str],
    kind: str,
    *,
    config: LaVITTokenizerConfig | None = None,
    dtype: torch.dtype = torch.float32,
) -> TokenDecoder:
    """One of the two released decoders alone ("lowres" or "highres"), e.g. as the second of a tokenizer.

    Arguments and errors as in :func:`load_released_tokenizer`.
    """
    if kind not in DECODER_FILES:
        raise ValueError(f"kind: expected one of {', '.join(DECODER_FILES)}, got {kind!r}")
    path = tokenizer_folder(folder) / DECODER_FILES[kind]
    settings = (config or LaVITTokenizerConfig.preset("lavit-g")).to_dict()
    settings.update(decoder_condition=kind)
    with torch.device("meta"):
        model = TokenDecoder(LaVITTokenizerConfig(**settings))
    fill(model, read_tensors(path), dtype, str(path))
    return model.eval()


def tokenizer_folder(folder: str | PathLike[str]) -> Path:
    inner = Path(folder) / "visual_tokenizer"
    return inner if inner.is_dir() else Path(folder)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A `.bin` file of named tensors, read without running any code from it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the release's visual_tokenizer/ folder holds it")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        first_line = str(error).split("\n")[0]
        raise ValueError(f"{path}: damaged, cut short, or not a file of tensors ({first_line})") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(state).__name__} with other contents")
    return dict(state)


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def fill(
    model: torch.nn.Module,
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    source: str,
    absent: set[str] | frozenset[str] = frozenset(),
) -> None:
    """Put tensors into a model built on the meta device; every name and shape must fit, but for those in ``absent``."""
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing = wanted.keys() - state.keys() - absent
    unexpected = state.keys() - wanted.keys()
    wrong_shape = [
        f"{name} (file {tuple(tensor.shape)}, model {tuple(wanted[name])})"
        for name, tensor in state.items()
        if name in wanted and tensor.shape != wanted[name]
    ]
    message = describe_tensors(missing, unexpected, wrong_shape)
    if message:
        raise ValueError(f"{source}: the tensors do not fit the model: {message}")
    cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    model.load_state_dict(cast, strict=False, assign=True)
