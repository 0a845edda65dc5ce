"""Where the networks of metrics get their weights: a file that is given, or the place where others have left it.

Nothing is downloaded, and nothing is unpickled: tensors are read from safetensors, or from a .pth by torch's reader
that builds nothing but tensors. A TorchScript archive (such as inception-2015-12-05.pt) is a program, and is refused.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
ALEXNET, LPIPS_HEADS = "alexnet-owt-7be5be79.pth", "alex.pth"
CLIP = "openai/clip-vit-large-patch14"
"""The one that the paper ranks by."""


class WeightsError(ValueError):
    """Weights that are not there or not what they should be; the message names the file."""


def hub_file(name: str) -> Path:
    """Where torch's hub keeps a file that it has downloaded."""
    return Path(torch.hub.get_dir(), "checkpoints", name)


def find_file(given: str | os.PathLike[str] | None, places: Sequence[Path], what: str, option: str) -> Path:
    """The file that is given, or else the first place that has it. WeightsError naming option and place."""
    if given is not None:
        if not Path(given).is_file():
            raise WeightsError(f"{option}: there is no file {os.fspath(given)}, {what}")
        return Path(given)
    for place in places:
        if place.is_file():
            return place
    raise WeightsError(f"{what} are not there: {places[0]}, or {option} FILE")


def lpips_heads_places() -> list[Path]:
    """The hub's, and what the packages lpips and torchmetrics bring with them. Neither is imported."""
    places = [hub_file(LPIPS_HEADS)]
    for package, inside in (("lpips", "weights/v0.1"), ("torchmetrics", "functional/image/lpips_models")):
        spec = find_spec(package)
        roots = (spec.submodule_search_locations or []) if spec is not None else []
        places += [Path(root, inside, LPIPS_HEADS) for root in roots]
    return places


def find_clip(given: str | os.PathLike[str] | None, option: str = "--clip") -> Path:
    """The folder of a CLIP: the one that is given, or ViT-L/14 in Hugging Face's cache. WeightsError."""
    if given is not None:
        if not (Path(given) / "config.json").is_file():
            raise WeightsError(f"{option}: there is no folder {os.fspath(given)} with a CLIP model (config.json)")
        return Path(given)
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(CLIP, "config.json")
    if not isinstance(found, str):
        raise WeightsError(f"{CLIP} is not in Hugging Face's cache ({constants.HF_HUB_CACHE}): {option} DIR names one")
    return Path(found).parent


def read_weights(path: Path, option: str) -> dict[str, Tensor]:
    """Tensors by name, on the CPU. WeightsError for any other content."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:  # whatever its parser says
            raise WeightsError(f"{option}: {path} cannot be read ({' '.join(str(error).split())[:200]})") from error
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in f"/{name}" for name in archive.namelist()):
                raise WeightsError(
                    f"{option}: {path} is a TorchScript archive, which is a program: expected weights alone, such as "
                    f"{INCEPTION} of torch-fidelity"
                )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # it has many kinds
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{option}: {path} cannot be read as weights alone ({reason})") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{option}: {path} holds no tensors by name")
    return content


def fill(module: nn.Module, weights: dict[str, Tensor], path: Path, option: str) -> None:
    """Every parameter and buffer of the module from the weights. WeightsError names what is missing or of another
    shape; counters of batches and surplus tensors do not matter."""
    own = {name: value for name, value in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, value in own.items():
        if name not in weights:
            raise WeightsError(f"{option}: {path} lacks {name}")
        if weights[name].shape != value.shape:
            shapes = f"{tuple(value.shape)}, got {tuple(weights[name].shape)}"
            raise WeightsError(f"{option}: {path}: expected {name} of shape {shapes}")
    module.load_state_dict({name: weights[name] for name in own}, strict=False)
