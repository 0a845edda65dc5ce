"""Pipelines of a few thousand parameters in the three layouts: pixels without a VAE, SD 1.5's and SDXL's."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from lavit.kernels import Ragged
from lavit.pixels import LaVITPixelPipeline, NegativeEmbeds, PixelConditioner, small_unet
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig

SIDE, NUM_CODES, PATCHES = 16, 16, 16
DIM, DIM_2 = 8, 12  # widths of the condition; DIM + DIM_2 is high-res's
NEGATIVES = 5  # rows, fewer than patches
LAYOUTS = ("small", "lowres", "highres")


def tiny_config(**overrides: Any) -> LaVITTokenizerConfig:
    sizes = {
        "image_size": SIDE,
        "hidden_size": 16,
        "encoder_depth": 1,
        "encoder_heads": 2,
        "merger_depth": 1,
        "decoder_depth": 1,
        "num_heads": 2,
        "num_codes": NUM_CODES,
        "code_dim": 4,
        "projection_dim": None,
        "condition_dim": DIM,
        "condition_dim_2": DIM_2,
    }
    return LaVITTokenizerConfig.preset("small", **{**sizes, **overrides})


def tiny_tokenizer(**overrides: Any) -> LaVITTokenizer:
    torch.manual_seed(0)
    return LaVITTokenizer(tiny_config(**overrides)).eval()


def tiny_unet(kind: str, **overrides: Any) -> UNet2DConditionModel:
    """In the layout of SD 1.5 or SDXL, for latents of 4 channels and 8 x 8."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": DIM,
    }
    if kind == "highres":
        times = 4
        sizes |= {
            "cross_attention_dim": DIM + DIM_2,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": times,
            "projection_class_embeddings_input_dim": DIM_2 + 6 * times,
            "use_linear_projection": True,
        }
    return UNet2DConditionModel(**{**sizes, **overrides}).eval()


def tiny_vae(**overrides: Any) -> AutoencoderKL:
    """Halves the sides once: latents of 8 x 8 are images of 16 x 16."""
    torch.manual_seed(2)
    sizes: dict[str, Any] = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 2,
        "sample_size": SIDE,
    }
    return AutoencoderKL(**{**sizes, **overrides}).eval()


def tiny_negative() -> NegativeEmbeds:
    return NegativeEmbeds.from_tensor(torch.randn(NEGATIVES, DIM, generator=torch.Generator().manual_seed(3)))


def tiny_pipeline(layout: str = "small", dtype: torch.dtype = torch.float32, **parts: Any) -> LaVITPixelPipeline:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(4)
    conditioner = PixelConditioner.for_tokenizer(tokenizer.config, "highres" if layout == "highres" else "lowres")
    if layout == "small":
        unet, vae = small_unet(SIDE, DIM, channels=(4, 8), heads=2, groups=2).eval(), None
    else:
        unet, vae = tiny_unet(layout), tiny_vae()
    given = {
        "tokenizer": tokenizer,
        "conditioner": conditioner,
        "unet": unet,
        "scheduler": DDIMScheduler(clip_sample=False),
        "image_processor": LaVITImageProcessor(SIDE),
        "vae": vae,
        "negative": tiny_negative() if layout == "lowres" else None,
    }
    pipeline = LaVITPixelPipeline(**{**given, **parts}).to(dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_codes(*lengths: int, seed: int = 5) -> Ragged:
    generator = torch.Generator().manual_seed(seed)
    return Ragged.from_list([torch.randint(NUM_CODES, (length,), generator=generator) for length in lengths])
