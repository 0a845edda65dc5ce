"""Stage 3: a U-Net learns to draw images from the features that their tokens decode to. ``lavit train pixels``.

`train_pixels` is the whole of it; the loop is `lavit.training.engine.loop.train`, what is minimised is in
`objective`, the images and what the tokenizer makes of them are in `data`.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from lavit.pixels.conditioner import PixelConditioner
from lavit.pixels.pipeline import LaVITPixelPipeline
from lavit.pixels.unet import PLACE, small_unet
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig
from lavit.tokenizer.processing import processor_for
from lavit.training.engine import distributed, stage
from lavit.training.engine.identity import digest
from lavit.training.engine.loop import Run
from lavit.training.engine.recipe import check_folders
from lavit.training.engine.stage import cache_folder
from lavit.training.pixels.buckets import Measured, sizes_of
from lavit.training.pixels.data import array_data, folder_data, open_images
from lavit.training.pixels.objective import Step, Trained, parameter_groups
from lavit.training.pixels.recipe import BASE_FILES, PixelsTrainingConfig
from lavit.training.pixels.validation import PixelsValidation

__all__ = ["PixelsTrainingConfig", "PixelsTrainingResult", "train_pixels"]


# The small preset's schedule of noise: the cosine of arXiv 2102.09672.
SMALL_SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": True,
}


@dataclass
class PixelsTrainingResult(stage.Finished):
    """pipeline: with the averaged weights. Rows of the history also have error, the mean squared error without weights,
    and images_per_second; rows of held-out images have val_loss and val_error, of the averages. skipped_items: (name,
    reason) of images that cannot be read."""

    pipeline: LaVITPixelPipeline
    skipped_items: list[tuple[str, str]] = field(default_factory=list)


def train_pixels(
    config: PixelsTrainingConfig,
    *,
    tokenizer: LaVITTokenizer | None = None,
    processor: LaVITImageProcessor | None = None,
    images: Any = None,
    features: Tensor | None = None,
    progress: stage.Progress | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_changes: bool = False,
) -> PixelsTrainingResult:
    """Trains a U-Net and its conditioner as `config` says.

    tokenizer, processor: a visual tokenizer with its image processor, instead of the folder that `config` names; it
    becomes a part of the pipeline, unchanged. images: (n, H, W, 3) uint8 instead of the data that `config` names.
    features: (n, N, C) of the tokenizer's ``encode_features`` for these images, or for the shapes world's first scenes.
    progress, resume, overwrite, allow_changes, and what is raised and left as it was: as in `train_tokenizer`.
    """
    with stage.session(config.device) as session:
        device = session.device
        # What can be wrong with the words is found before anything is written, or an older run overwritten.
        stage.seed_everything(config.seed)
        pipeline = _build(config, tokenizer, processor)
        images, held_out = _open(config, pipeline, images, features)
        checkpoints, saved = session.open_output(config, resume, overwrite)

        frozen = [part for part in (pipeline.tokenizer, pipeline.vae, pipeline.negative) if part is not None]
        for part in frozen:
            nn.Module.to(part, device).eval().requires_grad_(False)
        trained = Trained(pipeline.unet, pipeline.conditioner, config.ema).to(device)
        trained.unet.train()
        trained.conditioner.train()
        distributed.share(trained.state_dict().values())
        if config.gradient_checkpointing:
            trained.unet.enable_gradient_checkpointing()
        processor = pipeline.image_processor or LaVITImageProcessor(size=pipeline.tokenizer.config.image_size)
        if isinstance(images, Measured):
            stream, features_of = folder_data(config, pipeline.tokenizer, processor, images)
        else:
            stream, features_of = array_data(config, pipeline.tokenizer, processor, images, features)
        validation = None
        if held_out is not None:
            step_of, highres = partial(_step, config, pipeline), pipeline.kind == "highres"
            validation = PixelsValidation(config, pipeline.tokenizer, processor, held_out, step_of, highres)

        groups = parameter_groups(trained, config.optimizer.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=config.optimizer.betas, eps=config.optimizer.eps, fused=True)
        optimizer.register_step_post_hook(lambda *_: trained.move_average())  # not after a step that is skipped
        run = Run(trained, optimizer, stream, parts=_parts(pipeline, processor))
        run.replica = distributed.replicate(_step(config, pipeline, trained), device)
        stage.seed_everything(config.seed + 1 + distributed.rank())  # from here on, every process draws its own noise

        def step(model: nn.Module, batch: dict[str, Tensor], _: int) -> dict[str, Tensor]:
            pixels = batch["images"].to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 127.5 - 1
            ids = batch["time_ids"].to(device, non_blocking=True) if pipeline.kind == "highres" else None
            return model(pixels, features_of(batch), ids)

        with closing(stream):
            more: dict[str, Any] = {"validation": validation, "allow_changes": allow_changes}
            stop, history = stage.run_stage(run, step, config, checkpoints, saved, progress, **more)
        result = LaVITPixelPipeline(
            **pipeline.components | dict(trained.average.items()),
            requires_safety_checker=pipeline.config["requires_safety_checker"],
            default_steps=config.draw_steps,
            default_guidance=config.draw_guidance,
        )
        path = stage.finish(run, config, result)
        skipped = stream.skipped_items + (validation.skipped_items if validation is not None else [])
        return PixelsTrainingResult(result, skipped, history=history, path=path, stopped_by=stop.signal)


def _step(config: PixelsTrainingConfig, pipeline: LaVITPixelPipeline, trained: Any) -> Step:
    """trained: what holds the U-Net and the conditioner, `Trained` or its averages."""
    return Step(
        trained,
        pipeline.scheduler.alphas_cumprod.to(next(trained.parameters()).device),
        pipeline.scheduler.config.prediction_type,
        drop=config.drop,
        gamma=config.min_snr_gamma,
        vae=pipeline.vae,
        negative=pipeline.negative,
    )


def _parts(pipeline: LaVITPixelPipeline, processor: LaVITImageProcessor) -> dict[str, str]:
    """Marks of what the U-Net is learned beside, and of the schedule and prediction that give its output a meaning."""
    frozen = {"tokenizer": pipeline.tokenizer, "vae": pipeline.vae, "negative": pipeline.negative}
    return {
        **{name: digest(sorted(part.state_dict().items())) for name, part in frozen.items() if part is not None},
        "image processor": digest(processor.to_dict()),
        "scheduler": digest(_own(pipeline.scheduler.config)),
        "unet": digest(_own(pipeline.unet.config)),
    }


def _own(config: Any) -> dict[str, Any]:
    """Without patch_size where there is none: a U-Net of before knows no such word."""
    own = {name: value for name, value in config.items() if not name.startswith("_")}
    return {name: value for name, value in own.items() if name != "patch_size" or value is not None}


# ---------------------------------------------------------------------------------------------------- model and images


def _build(
    config: PixelsTrainingConfig, tokenizer: LaVITTokenizer | None, processor: LaVITImageProcessor | None
) -> LaVITPixelPipeline:
    """The pipeline with untrained or pretrained parts. Raises OSError or ValueError naming what is not there, or does
    not fit."""
    config.check_sources(tokenizer is not None)
    check_folders(config, "model", "tokenizer", "base", "validation")
    if config.model is not None:
        if tokenizer is not None:
            raise ValueError("tokenizer: expected none beside a model, which has its own")
        pipeline = LaVITPixelPipeline.from_pretrained(config.model)
        pipeline.scheduler = _scheduler(config, pipeline.scheduler.config)
        return pipeline
    if tokenizer is None:
        tokenizer = LaVITTokenizer.from_pretrained(config.tokenizer)
    if processor is None:
        processor = processor_for(tokenizer.config.image_size, config.tokenizer)
    unet: Any
    vae: AutoencoderKL | None
    if config.base is None:
        sizes = unet_sizes(config, tokenizer.config)
        unet, vae, scheduler = small_unet(**sizes), None, _scheduler(config, SMALL_SCHEDULER)
    else:
        unet, vae, scheduler = _load_base(config, Path(config.base))
    return LaVITPixelPipeline(tokenizer, _conditioner(config, tokenizer, unet), unet, scheduler, processor, vae)


def unet_sizes(config: PixelsTrainingConfig, tokenizer: LaVITTokenizerConfig) -> dict[str, Any]:
    """What `small_unet` is made with for a tokenizer."""
    large = tokenizer.patch_size > PLACE and tokenizer.patch_size % PLACE == 0
    return {
        "image_size": tokenizer.image_size,
        "condition_dim": tokenizer.decoder_out_dim or tokenizer.hidden_size,
        "patch": tokenizer.patch_size if large else None,
        **config.unet,
    }


def _load_base(
    config: PixelsTrainingConfig, folder: Path
) -> tuple[UNet2DConditionModel, AutoencoderKL, DDIMScheduler]:
    for file in BASE_FILES:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"base: {folder} lacks {file}")
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    return unet, vae, _scheduler(config, DDIMScheduler.load_config(folder, subfolder="scheduler"))


def _scheduler(config: PixelsTrainingConfig, base: Any) -> DDIMScheduler:
    """DDIM, as in the release, with the settings of `base` and the changes that the configuration makes."""
    changes = dict(config.scheduler)
    if config.prediction is not None:
        changes["prediction_type"] = config.prediction
    return DDIMScheduler.from_config({k: v for k, v in base.items() if k != "_class_name"}, **changes)


def _conditioner(config: PixelsTrainingConfig, tokenizer: LaVITTokenizer, unet: Any) -> PixelConditioner:
    """The heads of the tokenizer's decoder where they fit the U-Net, else new ones."""
    kind = "highres" if config.preset == "highres" else "lowres"
    if kind == "lowres":
        widths = {"condition_dim": unet.config.cross_attention_dim}
    else:
        if unet.config.addition_embed_type != "text_time":
            got = unet.config.addition_embed_type
            raise ValueError(f"base: highres expects an SDXL U-Net, with addition_embed_type text_time, got {got}")
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        widths = {"condition_dim": unet.config.cross_attention_dim - pooled, "condition_dim_2": pooled}
    decoder = tokenizer.decoder
    if decoder.kind == kind and all(getattr(tokenizer.config, name) == width for name, width in widths.items()):
        return PixelConditioner.from_decoder(decoder)
    return PixelConditioner.for_tokenizer(tokenizer.config, kind, **widths)


def _open(
    config: PixelsTrainingConfig, pipeline: LaVITPixelPipeline, images: Any, features: Tensor | None
) -> tuple[Any, Any]:
    """The images to train on and those held out, (n, H, W, 3) uint8 or `Measured`, of sizes that VAE and U-Net can
    divide; None where none are held out."""
    multiple = pipeline.size_multiple
    cache_folder(config.cache, config.output)  # refused at once where there is no place for one
    held_out = None
    if images is not None and (config.validation_share or config.validation is not None):
        raise ValueError("validation: expected none with images that are given")
    if images is None:
        sample = pipeline.unet.config.sample_size
        side = config.size or (sample if isinstance(sample, int) else sample[0]) * pipeline.vae_scale_factor
        images, held_out = open_images(config, sizes_of(side, config.buckets, multiple))
    if isinstance(images, Measured):
        if features is not None:
            raise ValueError("features: expected none with a folder of images; cache.enabled keeps them")
        return images, held_out
    if not isinstance(images, (np.ndarray, Tensor)) or images.ndim != 4 or images.shape[-1] != 3:
        got = tuple(images.shape) if isinstance(images, (np.ndarray, Tensor)) else type(images).__name__
        raise ValueError(f"images: expected a uint8 array (n, H, W, 3), got {got}")
    if str(images.dtype).removeprefix("torch.") != "uint8":
        raise ValueError(f"images: expected uint8, got {images.dtype}")
    if images.shape[1] % multiple or images.shape[2] % multiple:
        raise ValueError(
            f"images: expected sides that are multiples of {multiple} (VAE and U-Net halve them), "
            f"got {images.shape[1]} x {images.shape[2]}"
        )
    if features is not None and len(features) != len(images):
        raise ValueError(f"features: expected a row for each of {len(images)} images, got {len(features)}")
    return images, held_out
