"""This library's models with the weights of the recipe, those of the golden files `tests/golden/release_*`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from release_recipe import (
    LLAMA,
    NEGATIVES,
    SIDE,
    TEXT_SIZE,
    TOKENIZER,
    fill,
    noise,
    picture,
    picture_size,
    shape_head,
    text_tokenizer,
    weight,
)
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lavit.kernels import Ragged
from lavit.language import LaVIT, LaVITProcessor
from lavit.pixels import LaVITPixelPipeline, NegativeEmbeds, PixelConditioner
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig

GOLDEN = Path(__file__).parents[1] / "golden"
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
VAE: dict[str, Any] = {
    "block_out_channels": (4, 8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 2,
    "sample_size": 64,
    "latent_channels": 4,
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@cache
def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"release_{name}.safetensors")


def rows(name: str, key: str) -> list[list[int]]:
    """A ragged batch of ids of a golden file."""
    found = golden(name)
    return [row.tolist() for row in found[key].split(found[f"{key}_lengths"].tolist())]


def lists(ids: Ragged) -> list[list[int]]:
    return [row.tolist() for row in ids.unbind()]


def pictures(*numbers: int) -> list[Any]:
    return [picture(i, picture_size(i)) for i in numbers]


def new_tokenizer(kind: str = "lowres") -> LaVITTokenizer:
    model = LaVITTokenizer(LaVITTokenizerConfig(**TOKENIZER, merge="dense", decoder_condition=kind)).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name not in ("quantize.cluster_size", "quantize.updates"):
                part, _, rest = name.partition(".")
                whole = f"{kind}: {rest}" if part == "decoder" else f"tokenizer: {name}"
                tensor.copy_(weight(whole, tuple(tensor.shape)))
    model.quantize.reset_statistics()
    return model


def new_lavit(**head: float) -> LaVIT:
    language_model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    shape_head(fill(language_model, "language_model"), **head)
    as_released = {"prompt_images": "bare_codes", "answer_early_stopping": True}
    model = LaVIT.from_parts(language_model, new_tokenizer(), text_size=TEXT_SIZE, **as_released)
    model.understanding.form = "dense"
    fill(model.understanding, "visual_weight")
    return model.eval()


def new_processor() -> LaVITProcessor:
    return LaVITProcessor(LaVITImageProcessor(SIDE), text_tokenizer(), TEXT_SIZE)


def new_pipeline(kind: str) -> LaVITPixelPipeline:
    tokenizer = new_tokenizer(kind)
    width, pooled = TOKENIZER["condition_dim"], TOKENIZER["condition_dim_2"]
    layout: dict[str, Any] = {"cross_attention_dim": width}
    if kind == "highres":
        layout = {
            "cross_attention_dim": width + pooled,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": pooled + 6 * 4,
            "use_linear_projection": True,
        }
    pipeline = LaVITPixelPipeline(
        tokenizer,
        PixelConditioner.from_decoder(tokenizer.decoder).eval(),
        fill(UNet2DConditionModel(**UNET, **layout), f"unet {kind}"),
        DDIMScheduler(**SCHEDULER),
        vae=fill(AutoencoderKL(**VAE), f"vae {kind}"),
        negative=NegativeEmbeds.from_tensor(noise("negatives", 1, NEGATIVES, width)) if kind == "lowres" else None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
