"""From text to pixels, stage by stage; and both streams of guidance in one call of the U-Net beside two calls.

``pytest benchmarks/pixels``. The small preset with random weights, which do the same work as trained ones: every image
is given 24 tokens, and 25 steps of DDIM with guidance; the calls are compared over 10. On a GPU also a U-Net of SD
1.5's layout in float16 with the condition of the low-res release.

Parity: the whole must give what its stages give one after the other, bit for bit. One call must be as near to the same
steps in the next precision up as two calls are: its largest error may be twice theirs, and a rounding of both streams
in every step, which guidance g multiplies by g and g - 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.timing import measure
from lavit.kernels import Ragged
from lavit.language.model import LaVIT
from lavit.language.processing import LaVITProcessor
from lavit.language.text_tokenizer import train_text_tokenizer
from lavit.pixels import LaVITPixelPipeline, PixelConditioner, small_unet
from lavit.shapes.questions import sentences
from lavit.shapes.world import ShapesWorld
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig

TOKENS, GUIDANCE = 24, 5.0
STEPS, FEW = 25, 10
TEXT: dict[str, Any] = {"min_tokens": TOKENS, "max_tokens": TOKENS}
STAGES = ("language: tokens", "decoder: features", "U-Net: pixels", "whole")
FORMS = ("two calls", "one call")
BATCHES = (1, 8)


@dataclass(frozen=True)
class Case:
    name: str
    device: str | None  # the only one it is measured on
    steps: int
    batch: int


CASES = (
    *(Case("small", None, FEW, batch) for batch in BATCHES),
    *(Case("SD 1.5", "cuda", FEW, batch) for batch in (1, 4)),
)


@dataclass(frozen=True)
class Models:
    lavit: Any  # a LaVIT
    processor: LaVITProcessor
    pipeline: LaVITPixelPipeline

    @staticmethod
    @cache
    def of(device: str) -> Models:
        """The small preset."""
        torch.manual_seed(0)
        text = train_text_tokenizer(sentences(), 300)
        tokenizer = LaVITTokenizer(LaVITTokenizerConfig.preset("small"))
        config = LlamaConfig(
            vocab_size=len(text),
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=512,
        )
        llama = LlamaForCausalLM(config)
        lavit = LaVIT.from_parts(llama, tokenizer).eval().to(device)
        processor = LaVITProcessor(LaVITImageProcessor(32), text, len(text))
        conditioner = PixelConditioner.for_tokenizer(tokenizer.config, condition_dim=96)
        pipeline = LaVITPixelPipeline(tokenizer, conditioner, small_unet(32, 96), DDIMScheduler(clip_sample=False)).to(
            device
        )
        pipeline.set_progress_bar_config(disable=True)
        return Models(lavit, processor, pipeline)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("batch", BATCHES)
def bench_stages(benchmark, device, batch, stage):
    runs = stages(batch, str(device))
    measure(
        benchmark,
        device,
        f"text to image, small, {TOKENS} tokens, {STEPS} steps, B={batch}",
        runs[stage],
        implementation=stage,
        passed=agree(batch, str(device)),
        parity="the stages give the whole",
        samples=batch,
    )


@cache
def stages(batch: int, device: str) -> dict[str, Callable[[], Any]]:
    """Each stage on what the one before it gave, and the whole."""
    models, seeds = Models.of(device), list(range(batch))
    prompts, pipeline = ShapesWorld(0).scenes(batch).captions, models.pipeline
    settings: dict[str, Any] = {
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "seeds": seeds,
        "output_type": "pt",
    }

    def tokens() -> Ragged:
        return models.lavit.generate_tokens(prompts, models.processor, seeds=seeds, **TEXT).codes

    codes = tokens()
    with torch.no_grad():
        features = pipeline.tokenizer.decode(codes)

    forms = (
        tokens,
        lambda: pipeline.tokenizer.decode(codes),
        lambda: pipeline(features=features, **settings).images,
        lambda: pipeline.generate(models.lavit, models.processor, prompts, text=TEXT, **settings).images,
    )
    return dict(zip(STAGES, map(torch.no_grad(), forms), strict=True))


@cache
def agree(batch: int, device: str) -> bool:
    pixels, whole = (stages(batch, device)[stage]() for stage in STAGES[2:])
    return torch.equal(pixels, whole)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case.name}-B{case.batch}") for case in CASES])
def bench_guidance(benchmark, device, case, form):
    if case.device not in (None, device.type):
        pytest.skip(f"{case.name}: measured on {case.device}")
    errors = {name: error(case, name, str(device)) for name in FORMS}
    rounding = largest(case, str(device)) * torch.finfo(pipeline_of(case.name, str(device)).unet.dtype).eps
    allowed = 2 * errors["two calls"] + case.steps * (2 * GUIDANCE - 1) * rounding
    measure(
        benchmark,
        device,
        f"pixels with guidance, {case.name}, {case.steps} steps, B={case.batch}",
        lambda: latents_by(form, case, pipeline_of(case.name, str(device)), str(device)),
        implementation=form,
        baseline=form == "two calls",
        passed=errors[form] <= allowed,
        parity={"error": errors[form], "allowed": allowed},
        samples=case.batch,
    )


@cache
def pipeline_of(name: str, device: str) -> LaVITPixelPipeline:
    if name == "small":
        return Models.of(device).pipeline
    torch.manual_seed(0)
    config = LaVITTokenizerConfig.preset("small", hidden_size=1408, image_size=64, num_heads=16, merger_depth=1)
    with torch.device(device):
        tokenizer = LaVITTokenizer(config)
        conditioner = PixelConditioner.for_tokenizer(config, condition_dim=768).half()
        unet: Any = UNet2DConditionModel(sample_size=64, in_channels=3, out_channels=3, cross_attention_dim=768)
        unet.half()
    pipeline = LaVITPixelPipeline(tokenizer, conditioner, unet, DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def latents_by(form: str, case: Case, pipeline: LaVITPixelPipeline, device: str) -> Tensor:
    features = features_of(case, pipeline, device)
    if form == "two calls":
        return two_calls(case, pipeline, features)
    return pipeline(
        features=features,
        seeds=range(case.batch),
        num_inference_steps=case.steps,
        guidance_scale=GUIDANCE,
        output_type="latent",
    ).images


def features_of(case: Case, pipeline: LaVITPixelPipeline, device: str) -> Tensor:
    config: Any = pipeline.conditioner.config
    generator = torch.Generator().manual_seed(case.batch)
    return torch.randn(case.batch, config.num_patches, config.in_dim, generator=generator).to(device)


def two_calls(case: Case, pipeline: LaVITPixelPipeline, features: Tensor) -> Tensor:
    """The plain loop, with a call of the U-Net for each stream."""
    unet, scheduler = pipeline.unet, pipeline.scheduler
    condition = pipeline.conditioner(features).embeds
    negative = torch.zeros_like(condition)
    side = unet.config.sample_size
    noise = [torch.randn(3, side, side, generator=torch.Generator().manual_seed(i)) for i in range(case.batch)]
    scheduler.set_timesteps(case.steps)
    latents = torch.stack(noise).to(features)
    for step in scheduler.timesteps:
        seen = scheduler.scale_model_input(latents, step).to(unet.dtype)
        c, u = (unet(seen, step, encoder_hidden_states=rows).sample.to(latents) for rows in (condition, negative))
        latents = scheduler.step(u + GUIDANCE * (c - u), step, latents).prev_sample
    return latents


@cache
def error(case: Case, form: str, device: str) -> float:
    """The largest difference from the same steps in the next precision up."""
    found = latents_by(form, case, pipeline_of(case.name, device), device)
    return float((found.double() - exact(case, device)).abs().max())


@cache
def largest(case: Case, device: str) -> float:
    return float(exact(case, device).abs().max())


@cache
@torch.no_grad()
def exact(case: Case, device: str) -> Tensor:
    pipeline = pipeline_of(case.name, device)
    dtype = torch.float64 if pipeline.unet.dtype == torch.float32 else torch.float32
    conditioner = nn.Module.to(copy.deepcopy(pipeline.conditioner), dtype)
    unet = nn.Module.to(copy.deepcopy(pipeline.unet), dtype)
    finer = LaVITPixelPipeline(pipeline.tokenizer, conditioner, unet, pipeline.scheduler)
    return two_calls(case, finer, features_of(case, pipeline, device).to(dtype)).double()
