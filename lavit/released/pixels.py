"""The release's pixel stage: its folders of a U-Net, a VAE and what goes with them, as a pipeline of this library."""

from __future__ import annotations

import pickle
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lavit.pixels import LaVITPixelPipeline, NegativeEmbeds, PixelConditioner
from lavit.pixels.pretrained import load_strictly
from lavit.released.files import DECODER_FILES, TOKENIZER_FILE, load_bin, read_json, tokenizer_folder
from lavit.released.tokenizer import load_released_tokenizer
from lavit.tokenizer.configuration import LaVITTokenizerConfig
from lavit.tokenizer.processing import LaVITImageProcessor

PIXEL_FOLDERS = {"lowres": "pixel_decoding", "highres": "highres_pixel_decoding"}
NEGATIVE_FILE = "uncond_embeddings.bin"

# One of these holds or lists a model's weights.
WEIGHT_FILES = tuple(
    name + end
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
    for end in ("", ".index.json")
)
CHECKER_FILES = ("model.safetensors", "pytorch_model.bin")


def load_released_pixels(
    folder: str | PathLike[str],
    *,
    kind: str = "lowres",
    config: LaVITTokenizerConfig | None = None,
    safety_checker: bool = True,
    dtype: torch.dtype = torch.float32,
    visual_dtype: torch.dtype = torch.float32,
) -> LaVITPixelPipeline:
    """The released pixel stage from the release's folder, with DDIM and the tokenizer whose codes it draws.

    kind: "lowres" reads `pixel_decoding/{unet,vae,scheduler,safety_checker,feature_extractor}` and
        `uncond_embeddings.bin` (there or beside it); "highres" `highres_pixel_decoding/{unet,vae,scheduler}`. Both read
        `visual_tokenizer/`, with the decoder of that kind.
    config: sizes of another tokenizer in the same layout. safety_checker: False leaves it out, which the pipeline says
        when it is used; the high-res release has none.
    dtype: of U-Net, VAE, safety checker and condition. visual_dtype: of the tokenizer.

    No code of a file is run. Raises FileNotFoundError that names every missing part, and ValueError for a damaged file
    and for tensors that are missing, unexpected or of another shape.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    if kind not in PIXEL_FOLDERS:
        raise ValueError(f"kind: expected one of {', '.join(PIXEL_FOLDERS)}, got {kind!r}")
    place = Path(folder) / PIXEL_FOLDERS[kind]
    checked = safety_checker and kind == "lowres"
    check_parts(Path(folder), kind, checked)
    tokenizer = load_released_tokenizer(folder, config=config, decoder=kind, dtype=visual_dtype)
    checker, extractor = load_checker(place, dtype) if checked else (None, None)
    return LaVITPixelPipeline(
        tokenizer,
        cast(PixelConditioner.from_decoder(tokenizer.decoder), dtype),
        load_model(UNet2DConditionModel, place / "unet", dtype),
        load_scheduler(place / "scheduler"),
        LaVITImageProcessor(tokenizer.config.image_size),
        load_model(AutoencoderKL, place / "vae", dtype),
        checker,
        extractor,
        cast(load_negative(negative_file(Path(folder))), dtype) if kind == "lowres" else None,
        requires_safety_checker=kind == "lowres",
    )


def check_parts(folder: Path, kind: str, checked: bool) -> None:
    """FileNotFoundError for what the release's folder lacks."""
    place, visual = folder / PIXEL_FOLDERS[kind], tokenizer_folder(folder)
    wanted = [visual / TOKENIZER_FILE, visual / DECODER_FILES[kind], place / "scheduler" / "scheduler_config.json"]
    wanted += [place / model / "config.json" for model in ("unet", "vae")]
    either: dict[Path, tuple[str, ...]] = {place / model: WEIGHT_FILES for model in ("unet", "vae")}
    if checked:
        wanted += [place / "feature_extractor" / "preprocessor_config.json", place / "safety_checker" / "config.json"]
        either[place / "safety_checker"] = CHECKER_FILES
    if kind == "lowres":
        wanted.append(negative_file(folder))
    missing = [str(path) for path in wanted if not path.is_file()]
    for inner, names in either.items():
        if not any((inner / name).is_file() for name in names):
            missing.append(f"{inner / names[0]} (or {', '.join(names[1:])})")
    if missing:
        raise FileNotFoundError(f"the released pixel stage ({kind}) lacks {', '.join(missing)}")


def negative_file(folder: Path) -> Path:
    beside = folder / NEGATIVE_FILE
    return beside if beside.is_file() else folder / PIXEL_FOLDERS["lowres"] / NEGATIVE_FILE


def load_model(kind: Any, place: Path, dtype: torch.dtype) -> Any:
    """diffusers' way, but strict: every tensor is in the files, and nothing else."""
    from diffusers.utils import is_accelerate_available

    try:
        model, _ = load_strictly(
            kind.from_pretrained,
            place,
            local_files_only=True,
            use_safetensors=any((place / name).is_file() for name in WEIGHT_FILES[:2]),
            low_cpu_mem_usage=is_accelerate_available(),
        )
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{place}: damaged, or does not fit its config.json ({reason})") from error
    return cast(model, dtype)


def cast(model: nn.Module, dtype: torch.dtype) -> Any:
    """Without diffusers' warning that modules should be kept in float32, which it gives where there are none."""
    return nn.Module.to(model, dtype).eval()


def load_scheduler(place: Path) -> Any:
    """DDIM, which the release samples with, with the settings of whatever scheduler is stored."""
    from diffusers import DDIMScheduler

    settings = read_json(place / "scheduler_config.json")
    # Latents are not pixels in [-1, 1], which DDIM takes them for where the settings of another scheduler are silent.
    return DDIMScheduler.from_config({"clip_sample": False, **settings})


def load_checker(place: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The safety checker of Stable Diffusion and what prepares its input."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    checker: Any = StableDiffusionSafetyChecker.from_pretrained(
        place / "safety_checker", local_files_only=True, weights_only=True
    )
    extractor = CLIPImageProcessor.from_pretrained(place / "feature_extractor", local_files_only=True)
    return cast(checker, dtype), extractor


def load_negative(path: Path) -> NegativeEmbeds:
    """One tensor, (77, D) or (1, 77, D), by itself or as the only one of a dictionary."""
    content = load_bin(path, "a tensor")
    if isinstance(content, dict) and len(content) == 1:
        (content,) = content.values()
    if not isinstance(content, Tensor):
        raise ValueError(f"{path}: expected a tensor, got {type(content).__name__}")
    try:
        return NegativeEmbeds.from_tensor(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
