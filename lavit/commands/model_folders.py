"""The folders that commands are given: a tokenizer, a language model with one in it, and what draws pixels."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavit.training.engine.replaced import ASIDE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lavit.language import LaVITProcessor
    from lavit.pixels import LaVITPixelPipeline
    from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer

CONFIG_FILE, WEIGHTS_FILE, PIPELINE_FILE = "config.json", "model.safetensors", "model_index.json"
PIXELS = "pixels"
"""Where a language model's folder holds what draws its tokens."""
OF_TOKENIZER = "visual_tokenizer."
RELEASED = "visual_tokenizer"
"""What the folder of the released LaVIT has in it, and none of this library's."""


def load_tokenizer(folder: str, device: torch.device) -> tuple[LaVITTokenizer, LaVITImageProcessor]:
    """A tokenizer and its image processor from the folder of a tokenizer, of a language model or of a pixel pipeline.

    Nothing but the tokenizer is read. ValueError or OSError with the folder's name; no network.
    """
    place, processor_place, kind = find_tokenizer(folder)

    from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer

    processor = LaVITImageProcessor.from_pretrained(processor_place)
    with _loading(f"--model: {folder}"):
        if kind == "lavit":
            model = _tokenizer_of_language_model(place)
        else:
            model = LaVITTokenizer.from_pretrained(place, local_files_only=True)
    return model.eval().to(device), processor


def find_tokenizer(folder: str) -> tuple[Path, Path, str | None]:
    """Where in a folder a tokenizer is, where its image processor, and what kind of model holds it.

    ValueError where there is none; nothing is loaded.
    """
    place = check_folder(folder, "--model")
    processor_place = place
    if (place / PIPELINE_FILE).is_file():
        place, processor_place = place / "tokenizer", place / "image_processor"
    return place, processor_place, _kind(place, folder, "tokenizer")


def load_lavit(folder: str, device: torch.device) -> tuple[Any, LaVITProcessor]:
    """A LaVIT and its processor from a folder. ValueError or OSError with the folder's name; no network."""
    place = check_folder(folder, "--model")
    kind = _kind(place, folder, "model")
    from lavit.language.model import LaVIT
    from lavit.language.processing import LaVITProcessor

    if kind != LaVIT.config_class.model_type:
        what = "as `lavit train language` leaves it, or `lavit convert`"
        raise ValueError(f"--model: expected a LaVIT, {what}, {folder} holds {kind!r}")
    with _loading(f"--model: {folder}"):
        model = LaVIT.from_pretrained(folder, local_files_only=True)
        processor = LaVITProcessor.from_pretrained(folder, local_files_only=True)
    return model.eval().to(device), processor


def pixels_folder(model: str | None, pixels: str | None) -> str:
    """Where the pixel pipeline is: --pixels, or else --model itself, or `pixels` in it. ValueError where there is none.

    At least one of them is given.
    """
    if pixels is not None:
        if not (check_folder(pixels, "--pixels") / PIPELINE_FILE).is_file():
            raise ValueError(f"--pixels: {pixels} holds no pixel pipeline (it has no {PIPELINE_FILE})")
        return pixels
    assert model is not None
    place = check_folder(model, "--model")
    for found in (place, place / PIXELS):
        if (found / PIPELINE_FILE).is_file():
            return str(found)
    _refuse_released(place, model)
    raise ValueError(
        f"--model: {model} holds nothing that draws pixels (no {PIPELINE_FILE}, no {PIXELS}/{PIPELINE_FILE}); give "
        "--pixels DIR, the folder that `lavit train pixels` left"
    )


def load_pixels(folder: str, device: torch.device) -> LaVITPixelPipeline:
    """A pixel pipeline from its folder. ValueError with the folder's name, and of a part that it lacks; no network."""
    from diffusers.utils import logging as diffusers_logging

    from lavit.pixels import LaVITPixelPipeline

    parts = _read_json(Path(folder) / PIPELINE_FILE, "--pixels")
    named = [part for part, entry in parts.items() if isinstance(entry, list) and all(entry)]
    lacking = [part for part in named if not (Path(folder) / part).is_dir()]
    if lacking:
        raise ValueError(f"{folder} lacks {', '.join(lacking)}, which its {PIPELINE_FILE} names")
    diffusers_logging.disable_progress_bar()  # of loading
    # diffusers loads each part into empty weights if accelerate is there, and else says at length that it cannot.
    direct = find_spec("accelerate") is not None
    with _loading(folder):
        pipeline = LaVITPixelPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=direct)
    return pipeline.to(device)


def prepare_encoder(tokenizer: LaVITTokenizer, options: argparse.Namespace, batch_size: int) -> None:
    """Make the encoder what --dtype, --quantization and --compile ask for; without them nothing changes in any bit.

    batch_size: most images that are encoded together. What is compiled is compiled here: not while images are waiting,
    and on a GPU not while another thread copies, which a recording does not allow.
    ValueError or ImportError for what cannot be had here.
    """
    if options.dtype is None and options.quantization is None and not options.compile:
        return
    import torch

    chosen = {"dtype": options.dtype, "compile": options.compile, "quantization": options.quantization}
    try:
        tokenizer.for_inference(**chosen, batch_sizes=(batch_size,))
        if options.compile:
            side = tokenizer.config.image_size
            tokenizer.encode_features(torch.zeros(batch_size, 3, side, side, device=tokenizer.device))
    except (ValueError, ImportError) as error:
        raise type(error)(f"--{error}") from error
    except RuntimeError as error:
        if (reason := cannot_compile(error)) is None:
            raise
        raise ValueError(f"--compile: the encoder cannot be compiled here: {reason}") from error


def cannot_compile(error: Exception) -> str | None:
    """In a line why the compiler failed; None for an error that is not of the compiler. What follows its first
    paragraph is advice for developers."""
    from torch._dynamo.exc import TorchDynamoException  # slow to import

    if not isinstance(error, TorchDynamoException):
        return None
    return " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__


def check_same_codes(model: LaVITTokenizer, pixels: LaVITTokenizer, names: tuple[str, str]) -> None:
    """ValueError where the pixels were trained on another tokenizer, whose codes mean something else."""
    import torch

    ours, theirs = (tokenizer.quantize.embedding.weight.detach().float().cpu() for tokenizer in (model, pixels))
    # One of them may have been stored in half precision.
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(ours.abs().max())):
        raise ValueError(
            f"the pixels of {names[1]} are drawn from other codes than {names[0]} writes ({tuple(theirs.shape)} and "
            f"{tuple(ours.shape)}): they come from two tokenizers"
        )


def check_folder(folder: str, option: str) -> Path:
    """Its path; ValueError where it is not there."""
    if not Path(folder).is_dir():
        raise ValueError(f"{option}: there is no folder {folder}")
    return Path(folder)


def _kind(place: Path, folder: str, wanted: str) -> str | None:
    if not (place / CONFIG_FILE).is_file():
        _refuse_released(place, folder)
        lacking = (place / CONFIG_FILE).relative_to(folder)
        raise ValueError(f"--model: {folder} holds no {wanted} (it has no {lacking}){_aside(folder)}")
    return _read_json(place / CONFIG_FILE, "--model").get("model_type")


def _aside(folder: str) -> str:
    """Where the model is that a run in this folder has not replaced yet, as the end of an error."""
    aside = Path(folder) / ASIDE
    return f"; a run that has not ended is to replace the model in {aside}" if aside.is_dir() else ""


def _refuse_released(place: Path, folder: str) -> None:
    if place.name == RELEASED or (place / RELEASED).is_dir():
        raise ValueError(f"--model: {folder} is a released folder; `lavit convert {folder} OUT` makes one to use")


def _read_json(path: Path, option: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{option}: {path} is damaged or no JSON ({error})") from error
    return content if isinstance(content, dict) else {}


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Without progress bars. Files of unknown origin: whatever they break, the folder is what to look at."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        yield
    except Exception as error:
        raise ValueError(f"{name} cannot be loaded: {error}") from error


def _tokenizer_of_language_model(place: Path) -> LaVITTokenizer:
    """The visual tokenizer alone; the language model around it may be of several billions of parameters."""
    import torch
    from safetensors import safe_open

    from lavit.language.configuration import LaVITConfig
    from lavit.tokenizer import LaVITTokenizer

    index = place / f"{WEIGHTS_FILE}.index.json"
    files = {WEIGHTS_FILE}
    if index.is_file():
        homes: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {home for name, home in homes.items() if name.startswith(OF_TOKENIZER)}
    state: dict[str, Tensor] = {}
    for name in sorted(files):
        with safe_open(place / name, framework="pt") as file:
            state |= {
                n.removeprefix(OF_TOKENIZER): file.get_tensor(n) for n in file.keys() if n.startswith(OF_TOKENIZER)
            }
    with torch.device("meta"):
        model = LaVITTokenizer(LaVITConfig.from_pretrained(place, local_files_only=True).tokenizer_config)
    model.load_state_dict(state, assign=True)
    model.freeze()
    return model
