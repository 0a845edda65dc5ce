"""A released folder as one of this library's own, from which everything starts by `from_pretrained`."""

from __future__ import annotations

import gc
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch

from lavit.data.atomic_write import sync_folder
from lavit.language.vocabulary import Vocabulary
from lavit.released.files import DECODER_FILES, TOKENIZER_FILE, tokenizer_folder
from lavit.released.kinds import KINDS
from lavit.released.language import (
    CONFIG_FILE,
    check_language_config,
    load_released_lavit,
    load_released_processor,
    stored_dtype,
)
from lavit.released.language import check_parts as check_language_parts
from lavit.released.pixels import PIXEL_FOLDERS, load_released_pixels
from lavit.released.pixels import check_parts as check_pixel_parts
from lavit.released.tokenizer import load_released_tokenizer
from lavit.tokenizer.configuration import LaVITTokenizerConfig
from lavit.tokenizer.processing import LaVITImageProcessor

PIXELS, TOKENIZER = "pixels", "tokenizer"

# Files are written in pieces of this size, which are in memory once more while they are written.
SHARD = "1GB"


@dataclass(frozen=True)
class Conversion:
    """What is to be written.

    kinds: of the pixel stages; the first goes into `pixels`, a second one into `pixels_` and its name. decoder: of the
    tokenizer. has_language: whether there is a language model.
    """

    kinds: tuple[str, ...]
    decoder: str
    has_language: bool

    def folders(self) -> dict[str, str]:
        """The folder of each pixel stage."""
        return {kind: PIXELS if kind == self.kinds[0] else f"{PIXELS}_{kind}" for kind in self.kinds}


def plan(folder: str | PathLike[str], kinds: Sequence[str] | None = None) -> Conversion:
    """What a released folder holds. kinds: the pixel stages wanted; None: those that are there.

    FileNotFoundError for one that is wanted and not there, and for a folder that holds no part of a release.
    """
    place = Path(folder)
    if not tokenizer_folder(place).joinpath(TOKENIZER_FILE).is_file():
        raise FileNotFoundError(f"{place}: no released LaVIT (it has no visual_tokenizer/{TOKENIZER_FILE})")
    there = [kind for kind in KINDS if (place / PIXEL_FOLDERS[kind]).is_dir()]
    if absent := [kind for kind in kinds or () if kind not in there]:
        raise FileNotFoundError(f"{place} has no {', no '.join(PIXEL_FOLDERS[kind] for kind in absent)}")
    wanted = tuple(kind for kind in there if kinds is None or kind in kinds)
    decoders = [kind for kind in (*wanted, *KINDS) if (tokenizer_folder(place) / DECODER_FILES[kind]).is_file()]
    return Conversion(wanted, decoders[0] if decoders else KINDS[0], (place / "language_model").is_dir())


def convert_release(
    folder: str | PathLike[str],
    out: str | PathLike[str],
    *,
    kinds: Sequence[str] | None = None,
    config: LaVITTokenizerConfig | None = None,
    text_size: int = 32000,
    dtype: torch.dtype | None = None,
    visual_dtype: torch.dtype = torch.float32,
    safety_checker: bool = True,
) -> Conversion:
    """Write the release in ``folder`` as a new folder ``out``, all of it or nothing; returns what it holds.

    ``out`` gets the LaVIT and its processor (where there is no `language_model/`, the tokenizer and its image
    processor), and in `pixels` the pipeline of the high-res stage, else of the low-res one; where both are converted
    the low-res one is in `pixels_lowres`. The tokenizer alone is in `pixels/tokenizer`, or, without a pixel stage, in
    `tokenizer`. Weights are safetensors.

    kinds: the pixel stages wanted; None: those that are there. config, text_size, visual_dtype: as in
        :func:`load_released_lavit`; visual_dtype is float32 or the language model's, or the latter would be taken where
        ``out`` is loaded.
    dtype: of language model and pixel stages; None: as the former is stored, and float32. diffusers loads what is
        stored in half precision as float32 where it is not told otherwise
        (``torch_dtype={"default": torch.bfloat16, "tokenizer": torch.float32}``).
    safety_checker: False writes pipelines without it.

    Parts are read and written one after the other. Raises FileExistsError where there is ``out``, and what the loaders
    of the parts raise; nothing is left then.
    """
    source, target = Path(folder), Path(out)
    found = plan(source, kinds)
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"out: expected a new folder, {target} is there already")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"out: the folder {target.parent} of {target.name} does not exist")
    if found.has_language and visual_dtype != torch.float32:
        text = dtype or stored_dtype(source / "language_model")
        if visual_dtype != text:
            wanted = f"float32 or that of the language model, {text}"
            raise ValueError(f"visual_dtype: expected {wanted}, got {visual_dtype}")
    processor = None
    if found.has_language:
        processor = load_released_processor(source, config=config, text_size=text_size)
        language = source / "language_model"
        check_language_parts(source / "visual_tokenizer", language, found.decoder)
        codes = (config or LaVITTokenizerConfig.preset("lavit-g")).num_codes
        check_language_config(language / CONFIG_FILE, Vocabulary(text_size, codes))
    for kind in found.kinds:
        check_pixel_parts(source, kind, safety_checker)
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.tmp")
    temporary.mkdir()
    try:
        # Pixels first: the folder itself opens once all of it is there.
        for kind, name in found.folders().items():
            _write_pixels(source, temporary / name, kind, config, safety_checker, dtype or torch.float32, visual_dtype)
        if processor is not None:
            _write_language(source, temporary, found.decoder, config, text_size, dtype, visual_dtype)
            processor.save_pretrained(temporary)
        if not (found.has_language and found.kinds):
            own = temporary / TOKENIZER if found.has_language else temporary
            _write_tokenizer(source, own, found.decoder, config, visual_dtype)
        if target.exists():  # made by another process meanwhile
            raise FileExistsError(f"out: expected a new folder, {target} is there already")
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(target.parent)
    return found


def _write_pixels(
    source: Path,
    place: Path,
    kind: str,
    config: LaVITTokenizerConfig | None,
    safety_checker: bool,
    dtype: torch.dtype,
    visual_dtype: torch.dtype,
) -> None:
    pipeline = load_released_pixels(
        source, kind=kind, config=config, safety_checker=safety_checker, dtype=dtype, visual_dtype=visual_dtype
    )
    pipeline.save_pretrained(place, max_shard_size=SHARD)
    del pipeline
    gc.collect()  # modules refer to themselves


def _write_language(
    source: Path,
    place: Path,
    decoder: str,
    config: LaVITTokenizerConfig | None,
    text_size: int,
    dtype: torch.dtype | None,
    visual_dtype: torch.dtype,
) -> None:
    model = load_released_lavit(
        source, config=config, decoder=decoder, text_size=text_size, dtype=dtype, visual_dtype=visual_dtype
    )
    model.save_pretrained(place, max_shard_size=SHARD)
    del model
    gc.collect()


def _write_tokenizer(
    source: Path, place: Path, decoder: str, config: LaVITTokenizerConfig | None, dtype: torch.dtype
) -> None:
    model = load_released_tokenizer(source, config=config, decoder=decoder, dtype=dtype)
    model.save_pretrained(place, max_shard_size=SHARD)
    LaVITImageProcessor(model.config.image_size).save_pretrained(place)
