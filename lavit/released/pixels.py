"""The release's pixel stage: its folders of a U-Net, a VAE and what goes with them, as a pipeline of this library."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavit.pixels import LaVITPixelPipeline, NegativeEmbeds, PixelConditioner
from lavit.pixels.pretrained import load_strictly
from lavit.released.files import (
    DECODER_FILES,
    TOKENIZER_FILE,
    check_loaded,
    lacks,
    load_bin,
    read_json,
    tokenizer_folder,
)
from lavit.released.memory import own_weights
from lavit.released.tokenizer import load_released_tokenizer
from lavit.tokenizer.configuration import LaVITTokenizerConfig
from lavit.tokenizer.processing import LaVITImageProcessor

PIXEL_FOLDERS = {"lowres": "pixel_decoding", "highres": "highres_pixel_decoding"}
NEGATIVE_FILE = "uncond_embeddings.bin"

# One of these holds or lists a model's weights; the first that is there counts, as in the release, which reads U-Nets
# from `.bin` alone.
SAFETENSORS = tuple("diffusion_pytorch_model.safetensors" + end for end in ("", ".index.json"))
BIN = tuple("diffusion_pytorch_model.bin" + end for end in ("", ".index.json"))
WEIGHT_FILES = {"unet": BIN + SAFETENSORS, "vae": SAFETENSORS + BIN}
CHECKER_FILES = ("model.safetensors", "pytorch_model.bin")

CHECKER, EXTRACTOR = "safety_checker", "feature_extractor"

# What older checkpoints of CLIP hold beside their weights: the numbers of the positions, 0, 1, 2, ...
OLD_TENSORS = "embeddings.position_ids"

# Without these a scheduler takes noise levels that no released U-Net has learned.
NEEDED_SETTINGS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")

logger = logging.getLogger(__name__)


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

    kind: "lowres" reads `pixel_decoding/{unet,vae,scheduler}` and `pixel_decoding/uncond_embeddings.bin` (or, where
        that is not there, the one beside the folder); "highres" `highres_pixel_decoding/{unet,vae,scheduler}`. Both
        read `visual_tokenizer/`, with the decoder of that kind, and, as the release does by default, the safety checker
        of `pixel_decoding/{safety_checker,feature_extractor}`.
    config: sizes of another tokenizer in the same layout. safety_checker: False leaves it out, which the pipeline says
        when it is used.
    dtype: of U-Net, VAE, safety checker and condition. visual_dtype: of the tokenizer; see
        :func:`load_released_tokenizer` for what stays in float32.

    Of weights in two formats the release's counts: `.bin` for U-Nets, safetensors else; the log names the other. The
    weights are copied out of the files, which may change afterwards. No code of a file is run. Raises FileNotFoundError
    that names every missing part, and ValueError for a damaged file and for tensors that are missing, unexpected or of
    another shape.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    if kind not in PIXEL_FOLDERS:
        raise ValueError(f"kind: expected one of {', '.join(PIXEL_FOLDERS)}, got {kind!r}")
    place = Path(folder) / PIXEL_FOLDERS[kind]
    check_parts(Path(folder), kind, safety_checker)
    tokenizer = load_released_tokenizer(folder, config=config, decoder=kind, dtype=visual_dtype)
    negative, checker, extractor = None, None, None
    if kind == "lowres":
        path, beside = negative_file(Path(folder)), Path(folder) / NEGATIVE_FILE
        negative = cast(load_negative(path), dtype)
        if path != beside and beside.is_file():
            logger.warning("%s: not read, %s is the release's place", beside, path)
    if safety_checker:
        checker, extractor = load_checker(Path(folder) / PIXEL_FOLDERS["lowres"], dtype)
    return LaVITPixelPipeline(
        tokenizer,
        cast(PixelConditioner.from_decoder(tokenizer.decoder), dtype),
        load_model(UNet2DConditionModel, place / "unet", dtype),
        load_scheduler(place / "scheduler"),
        LaVITImageProcessor(tokenizer.config.image_size),
        load_model(AutoencoderKL, place / "vae", dtype),
        checker,
        extractor,
        negative,
        requires_safety_checker=True,
    )


def check_parts(folder: Path, kind: str, checked: bool) -> None:
    """FileNotFoundError for what the release's folder lacks."""
    place, visual = folder / PIXEL_FOLDERS[kind], tokenizer_folder(folder)
    wanted = [visual / TOKENIZER_FILE, visual / DECODER_FILES[kind], place / "scheduler" / "scheduler_config.json"]
    wanted += [place / model / "config.json" for model in ("unet", "vae")]
    if kind == "lowres":
        wanted.append(negative_file(folder))
    missing = [str(path) for path in wanted if not path.is_file()]
    missing += [without for model in ("unet", "vae") if (without := lacks(place / model, WEIGHT_FILES[model]))]
    of_checker: list[str] = []
    if checked:
        checker = folder / PIXEL_FOLDERS["lowres"]
        files = [checker / EXTRACTOR / "preprocessor_config.json", checker / CHECKER / "config.json"]
        of_checker = [str(path) for path in files if not path.is_file()]
        of_checker += filter(None, [lacks(checker / CHECKER, CHECKER_FILES)])
    if missing or of_checker:
        way = "safety_checker=False leaves the safety checker out, of a command --no-safety-checker"
        hint = f" ({way})" if of_checker else ""
        raise FileNotFoundError(f"the released pixel stage ({kind}) lacks {', '.join(missing + of_checker)}{hint}")


def weights_file(place: Path, names: tuple[str, ...]) -> str:
    """The first of these that is there; the log names the others."""
    first, *others = (name for name in names if (place / name).is_file())
    for other in others:
        logger.warning("%s: not read, %s beside it is, as in the release", place / other, first)
    return first


def negative_file(folder: Path) -> Path:
    """The stored negatives: at the release's place, or, where they are not there, beside it."""
    own, beside = folder / PIXEL_FOLDERS["lowres"] / NEGATIVE_FILE, folder / NEGATIVE_FILE
    return beside if beside.is_file() and not own.is_file() else own


def load_model(kind: Any, place: Path, dtype: torch.dtype) -> Any:
    """diffusers' way, but strict: every tensor is in the files, and nothing else; and in memory of its own."""
    from diffusers.utils import is_accelerate_available

    safe = weights_file(place, WEIGHT_FILES[place.name]) in SAFETENSORS
    with _loading(place):
        model, _ = load_strictly(
            kind.from_pretrained,
            place,
            local_files_only=True,
            use_safetensors=safe,
            low_cpu_mem_usage=is_accelerate_available(),
        )
    own_weights(model, dtype)
    return model.eval()


@contextmanager
def _loading(place: Path) -> Iterator[None]:
    """ValueError naming the folder for whatever its files break."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # damaged files break in as many ways as there are
        if isinstance(error, ValueError) and str(place) in str(error):
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{place}: damaged, or does not fit its config.json ({reason})") from error


def cast(model: nn.Module, dtype: torch.dtype) -> Any:
    """Without diffusers' warning that modules should be kept in float32, which it gives where there are none."""
    return nn.Module.to(model, dtype).eval()


def load_scheduler(place: Path) -> Any:
    """DDIM, which the release samples with, with the settings of whatever scheduler is stored."""
    from diffusers import DDIMScheduler

    path = place / "scheduler_config.json"
    settings = read_json(path)
    if lacking := [name for name in NEEDED_SETTINGS if settings.get(name) is None]:
        raise ValueError(f"{path}: expected the settings of a scheduler, it lacks {', '.join(lacking)}")
    try:
        # Latents are not pixels in [-1, 1], which DDIM takes them for where another scheduler's settings are silent.
        return DDIMScheduler.from_config({"clip_sample": False, **settings})
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{path}: no settings for DDIM ({error})") from error


def load_checker(place: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The safety checker of Stable Diffusion and what prepares its input, from the folder that holds both."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    own = place / CHECKER
    safe = weights_file(own, CHECKER_FILES) == CHECKER_FILES[0]
    with _loading(own):
        loaded: Any = StableDiffusionSafetyChecker.from_pretrained(
            own,
            local_files_only=True,
            weights_only=True,
            use_safetensors=safe,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    checker, info = loaded
    check_loaded(own, info, OLD_TENSORS)
    own_weights(checker, dtype)
    return checker.eval(), load_extractor(place / EXTRACTOR, checker.config.vision_config.image_size)


def load_extractor(place: Path, side: int) -> Any:
    """What makes images the checker's input; ValueError for one of another kind, or whose images have another side."""
    from transformers import CLIPImageProcessor

    path = place / "preprocessor_config.json"
    settings = read_json(path)
    kinds = [settings.get(name) for name in ("image_processor_type", "feature_extractor_type")]
    if not any(str(kind).startswith("CLIP") for kind in kinds):
        raise ValueError(f"{path}: expected a CLIPImageProcessor's settings, got one of {kinds[0] or kinds[1]}")
    with _loading(place):
        extractor: Any = CLIPImageProcessor.from_pretrained(place, local_files_only=True)
    crop = extractor.crop_size or {}
    if (crop.get("height"), crop.get("width")) != (side, side):
        wanted = f"{side} x {side}, which the safety checker sees"
        raise ValueError(f"{path}: crop_size: expected {wanted}, got {dict(crop)}")
    return extractor


def load_negative(path: Path) -> NegativeEmbeds:
    """One tensor, (77, D) or (1, 77, D), by itself or as the only one of a dictionary."""
    content = load_bin(path, "a tensor")
    if isinstance(content, dict) and len(content) == 1:
        (content,) = content.values()
    if not isinstance(content, Tensor):
        raise ValueError(f"{path}: expected a tensor, got {type(content).__name__}")
    try:
        return NegativeEmbeds.from_tensor(content)  # a copy
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
