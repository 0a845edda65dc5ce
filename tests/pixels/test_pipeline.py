"""Drawing: equal to a loop by hand with two calls of the U-Net a step; seeds, schedulers, callbacks."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import SDXLCFGCutoffCallback
from tiny_pixels import DIM, DIM_2, LAYOUTS, NEGATIVES, PATCHES, SIDE, tiny_codes, tiny_pipeline, tiny_unet
from torch import Tensor

from lavit.kernels import Ragged
from lavit.pixels import LaVITPixelPipeline

STEPS, SCALE = 4, 3.5
OFF = "the safety checker of this pipeline is off: its images are not checked"


def plain_drawing(pipe: LaVITPixelPipeline, codes: Ragged, seeds: list[int], size: tuple[int, int]) -> Tensor:
    """Images in [0, 1], by the definition: one image at a time, the negative unpadded, DDIM written out."""
    dtype, heads = pipe.unet.dtype, pipe.conditioner
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float32), 0).to(dtype)
    images = []
    for ids, seed in zip(codes.unbind(), seeds, strict=True):
        features = pipe.tokenizer.decode(Ragged.from_list([ids]))
        extra: dict[str, Any] = {}
        negative_extra: dict[str, Any] = {}
        if pipe.kind == "highres":
            embeds = torch.cat((heads.unet_proj_1(features), heads.unet_proj_2(features)), dim=-1)
            pooled, times = heads.unet_attnpool(features), torch.tensor([[*size, 0, 0, *size]], dtype=dtype)
            extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": times}}
            negative_extra = {"added_cond_kwargs": {"text_embeds": torch.zeros_like(pooled), "time_ids": times}}
        else:
            embeds = heads.unet_proj(features)
        negative = torch.zeros_like(embeds) if pipe.negative is None else pipe.negative.embeds[None]
        shrink = 1 if pipe.vae is None else 2
        shape = (pipe.unet.config.in_channels, size[0] // shrink, size[1] // shrink)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))[None].to(dtype)
        for t in range(1000 - 1000 // STEPS, -1, -(1000 // STEPS)):
            c = pipe.unet(x, t, encoder_hidden_states=embeds, **extra).sample
            u = pipe.unet(x, t, encoder_hidden_states=negative, **negative_extra).sample
            noise = u + SCALE * (c - u)
            before = t - 1000 // STEPS
            alpha, alpha_before = alphas[t], alphas[before] if before >= 0 else torch.ones((), dtype=dtype)
            clean = (x - (1 - alpha) ** 0.5 * noise) / alpha**0.5
            x = alpha_before**0.5 * clean + (1 - alpha_before) ** 0.5 * noise
        if pipe.vae is not None:
            x = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
        images.append((x / 2 + 0.5).clamp(0, 1))
    return torch.cat(images)


@pytest.mark.parametrize(("layout", "size"), [("small", (16, 16)), ("lowres", (16, 16)), ("highres", (12, 20))])
@torch.no_grad()
def test_guided_drawing_equals_two_calls_a_step_by_hand(layout: str, size: tuple[int, int]) -> None:
    """In float64; what remains is rounding, which the latents' float32 noise is free of (the same numbers)."""
    pipe, codes, seeds = tiny_pipeline(layout, torch.float64), tiny_codes(3, 0, PATCHES), [11, 12, 13]
    expected = plain_drawing(pipe, codes, seeds, size)
    drawn = pipe(
        codes,
        seeds=seeds,
        height=size[0],
        width=size[1],
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        output_type="pt",
    )
    assert drawn.images.shape == (3, 3, *size) and drawn.images.std() > 0.01
    # The image is in [0, 1]; the scheduler's own table of alphas is float32, as is that of the plain loop.
    assert (drawn.images.double() - expected).abs().max() < 1e-6
    other = pipe(codes, seeds=seeds, height=size[0], width=size[1], num_inference_steps=STEPS, output_type="pt")
    assert (other.images.double() - expected).abs().max() > 1e-6  # guidance matters


class CountedUNet(torch.nn.Module):
    """How often a U-Net was called, with what batches."""

    def __init__(self, unet: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.batches: list[int] = []
        forward = unet.forward

        def counted(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.batches.append(len(sample))
            return forward(sample, *args, **kwargs)

        monkeypatch.setattr(unet, "forward", counted)


@pytest.mark.parametrize(("scale", "streams"), [(3.0, 2), (1.0, 1), (0.0, 1)])
def test_both_streams_share_one_call_a_step(scale: float, streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline("lowres")
    counted = CountedUNet(pipe.unet, monkeypatch)
    pipe(tiny_codes(3, 5), num_inference_steps=3, guidance_scale=scale)
    assert counted.batches == [2 * streams] * 3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerAncestralDiscreteScheduler])
def test_an_image_does_not_depend_on_its_batch_or_on_calls_before(layout: str, scheduler: Any) -> None:
    """Its noise is bitwise the same, of the start and of every step; sums of another batch round differently."""
    pipe = tiny_pipeline(layout, torch.float64)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    codes, seeds = tiny_codes(3, 9, 1), [7, 2**40, 9]
    settings = {"num_inference_steps": 3, "output_type": "latent", "eta": 0.7}
    together = pipe(codes, seeds=seeds, **settings).images
    rows = codes.unbind()
    for order in ([2, 0], [1]):
        alone = pipe(Ragged.from_list([rows[i] for i in order]), seeds=[seeds[i] for i in order], **settings).images
        torch.testing.assert_close(alone, together[order], rtol=1e-9, atol=1e-9)


def test_the_same_call_draws_the_same_bits() -> None:
    pipe, codes = tiny_pipeline("lowres"), tiny_codes(3, 9)
    first, again = (pipe(codes, seeds=[1, 2], num_inference_steps=2, output_type="pt").images for _ in range(2))
    assert torch.equal(first, again)
    other = pipe(codes, seeds=[1, 3], num_inference_steps=2, output_type="pt").images
    assert torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


def test_generators_stand_in_for_seeds() -> None:
    pipe, codes = tiny_pipeline(), tiny_codes(3, 9)

    def drawn(**how: Any) -> Tensor:
        return pipe(codes, num_inference_steps=2, output_type="pt", **how).images

    own = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
    assert torch.equal(drawn(seeds=torch.tensor([4, 5])), drawn(generator=own))
    one = [drawn(generator=torch.Generator().manual_seed(6)) for _ in range(2)]
    assert torch.equal(*one)
    torch.manual_seed(7)
    first = drawn()
    torch.manual_seed(7)
    assert torch.equal(first, drawn())


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler,
        PNDMScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_any_scheduler_draws(scheduler: Any) -> None:
    pipe = tiny_pipeline()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    images = pipe(tiny_codes(3), seeds=[1], num_inference_steps=4, output_type="np").images
    assert images.shape == (1, SIDE, SIDE, 3) and np.isfinite(images).all() and images.std() > 0


def test_forms_of_output_agree() -> None:
    pipe, codes = tiny_pipeline("lowres"), tiny_codes(3, 9)
    forms = {
        form: pipe(codes, seeds=[1, 2], num_inference_steps=2, output_type=form)
        for form in ("pt", "np", "pil", "latent")
    }
    array = forms["np"].images
    assert np.array_equal(array, forms["pt"].images.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(np.stack([np.array(image) for image in forms["pil"].images]), (array * 255).round())
    assert forms["latent"].images.shape == (2, 4, 8, 8)
    images, flags = pipe(codes, seeds=[1, 2], num_inference_steps=2, output_type="np", return_dict=False)
    assert np.array_equal(images, array) and flags is None and forms["np"].nsfw_content_detected is None


def test_no_image_is_no_error() -> None:
    pipe = tiny_pipeline("lowres")
    none = Ragged(torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int32), 0)
    assert pipe(none).images == [] and pipe(none, output_type="pt").images.shape[0] == 0


def test_a_callback_sees_and_replaces_tensors() -> None:
    pipe, codes, seen = tiny_pipeline("highres"), tiny_codes(3, 9), []

    def callback(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert pipeline is pipe and pipe.num_timesteps == 3
        seen.append((step, int(timestep), {name: tuple(tensor.shape) for name, tensor in tensors.items()}))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    drawn = pipe(
        codes,
        num_inference_steps=3,
        output_type="latent",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"],
    )
    assert drawn.images.eq(0).all()
    shapes = {
        "latents": (2, 4, 8, 8),
        "prompt_embeds": (4, PATCHES, DIM + DIM_2),
        "add_text_embeds": (4, DIM_2),
        "add_time_ids": (4, 6),
    }
    assert seen == [(step, t, shapes) for step, t in enumerate((666, 333, 0))]


def test_a_callback_can_stop() -> None:
    pipe, steps = tiny_pipeline(), []

    def callback(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        steps.append(step)
        pipeline._interrupt = step == 1

    pipe(tiny_codes(3), num_inference_steps=5, callback_on_step_end=callback)
    assert steps == [0, 1]


def test_diffusers_own_callback_ends_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline("highres")
    counted = CountedUNet(pipe.unet, monkeypatch)
    cutoff = SDXLCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    pipe(tiny_codes(3), num_inference_steps=4, callback_on_step_end=cutoff)
    assert counted.batches == [2, 2, 1, 1]


def test_sizes_are_told_to_a_highres_unet() -> None:
    pipe, codes = tiny_pipeline("highres"), tiny_codes(3)
    seen: list[list[float]] = []

    def callback(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        seen.extend(tensors["add_time_ids"].tolist())

    settings = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["add_time_ids"]}
    pipe(codes, height=12, width=20, original_size=(100, 70), num_inference_steps=1, **settings)
    assert seen == [[100, 70, 0, 0, 12, 20]] * 2


def test_defaults_are_the_releases() -> None:
    for layout in ("lowres", "highres"):
        pipe, seen = tiny_pipeline(layout), []

        def callback(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor], seen: Any = seen) -> None:
            seen.append((pipeline.num_timesteps, pipeline.guidance_scale))
            pipeline._interrupt = True

        image = pipe(tiny_codes(3), callback_on_step_end=callback).images[0]
        assert seen == [(25, 7.0)] and image.size == (SIDE, SIDE)


class Checker(torch.nn.Module):
    """Stable Diffusion's form: flags the brightest, and blackens it."""

    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, images: np.ndarray, clip_input: Tensor) -> tuple[np.ndarray, list[bool]]:
        brightness = clip_input.mean(dim=(1, 2, 3))
        flags = (brightness == brightness.max()).tolist()
        return np.stack([image * (not flag) for image, flag in zip(images, flags, strict=True)]), flags


def extract(images: list[Any], return_tensors: str) -> SimpleNamespace:
    assert return_tensors == "pt"
    array = np.stack([np.array(image) for image in images])
    return SimpleNamespace(pixel_values=torch.from_numpy(array).permute(0, 3, 1, 2).float())


def test_a_safety_checker_blackens_what_it_flags(caplog: pytest.LogCaptureFixture) -> None:
    plain = tiny_pipeline("lowres")
    pipe = tiny_pipeline("lowres", requires_safety_checker=True)
    pipe.safety_checker, pipe.feature_extractor = Checker(), extract
    settings = {"seeds": [1, 2], "num_inference_steps": 2, "output_type": "pt"}
    with caplog.at_level(logging.WARNING):
        drawn = pipe(tiny_codes(3, 9), **settings)
    unchecked = plain(tiny_codes(3, 9), **settings)
    brightest = int(unchecked.images.mean(dim=(1, 2, 3)).argmax())
    assert drawn.nsfw_content_detected == [place == brightest for place in range(2)]
    assert drawn.images[brightest].eq(0).all() and torch.equal(
        drawn.images[1 - brightest], unchecked.images[1 - brightest]
    )
    assert OFF not in caplog.messages


def test_it_is_said_once_that_the_safety_checker_is_off(caplog: pytest.LogCaptureFixture) -> None:
    pipe = tiny_pipeline("lowres", requires_safety_checker=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert pipe(tiny_codes(3), num_inference_steps=1).nsfw_content_detected is None
        tiny_pipeline("small")(tiny_codes(3), num_inference_steps=1)
    assert caplog.messages.count(OFF) == 1


def test_negatives_are_padded_behind_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, masks = tiny_pipeline("lowres"), []
    forward = pipe.unet.forward

    def seen(*args: Any, encoder_attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        masks.append(encoder_attention_mask)
        return forward(*args, encoder_attention_mask=encoder_attention_mask, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", seen)
    pipe(tiny_codes(3), num_inference_steps=1)
    assert masks[0].sum(dim=1).tolist() == [NEGATIVES, PATCHES]


def test_compiled_and_channels_last_draw_the_same() -> None:
    codes, settings = tiny_codes(3, 9), {"seeds": [1, 2], "num_inference_steps": 2, "output_type": "pt"}
    expected = tiny_pipeline(dtype=torch.float64)(codes, **settings).images
    pipe = tiny_pipeline(dtype=torch.float64).accelerate(compile=True, channels_last=True, backend="eager")
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pipe(codes, **settings).images, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"compile: expected True with options of torch.compile \(mode\)"):
        pipe.accelerate(mode="max-autotune")


def test_offloading_names_the_parts_in_the_order_of_their_use() -> None:
    pipe = tiny_pipeline("lowres")
    order = pipe.model_cpu_offload_seq.split("->")
    assert order == ["tokenizer", "conditioner", "unet", "vae"]
    models = {name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert set(order) <= models and models - set(order) <= set(pipe._exclude_from_cpu_offload)


def test_an_offloaded_tokenizer_is_brought_before_it_decodes() -> None:
    """accelerate hooks into forward(), which a tokenizer that decodes does not pass through."""
    pipe, brought = tiny_pipeline(), []
    pipe.tokenizer._hf_hook = SimpleNamespace(pre_forward=brought.append, execution_device=torch.device("cpu"))
    pipe(tiny_codes(3), num_inference_steps=1)
    assert brought == [pipe.tokenizer]


def test_half_precision_draws_nearly_the_same() -> None:
    """The latents stay in float32: only the U-Net rounds."""
    codes, settings = tiny_codes(3, 9), {"seeds": [1, 2], "num_inference_steps": 3, "output_type": "latent"}
    exact = tiny_pipeline("small", torch.float64)(codes, **settings).images
    half = tiny_pipeline("small", torch.bfloat16)(codes, **settings).images
    assert half.dtype == torch.float32
    assert (half - exact).abs().max() / exact.abs().max() < 0.1


def test_a_vae_that_overflows_in_half_precision_decodes_in_single(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, dtypes = tiny_pipeline("highres", torch.float16), []
    decode = pipe.vae.decode

    def seen(latents: Tensor, **kwargs: Any) -> Any:
        dtypes.append((latents.dtype, pipe.vae.dtype))
        return decode(latents, **kwargs)

    monkeypatch.setattr(pipe.vae, "decode", seen)
    pipe(tiny_codes(3), num_inference_steps=1)
    assert dtypes == [(torch.float32, torch.float32)] and pipe.vae.dtype == torch.float16


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gpu_draws_the_same_and_its_host_waits_for_no_step(layout: str) -> None:
    codes, settings = tiny_codes(3, 9), {"seeds": [1, 2], "num_inference_steps": 4, "output_type": "pt"}
    expected = tiny_pipeline(layout, torch.float64)(codes, **settings).images
    pipe = tiny_pipeline(layout, torch.float64).to("cuda")

    def strict(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        torch.cuda.set_sync_debug_mode("default" if step == 3 else "error")

    try:
        drawn = pipe(codes, **settings, callback_on_step_end=strict).images
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(drawn.cpu(), expected, rtol=1e-6, atol=1e-6)


def test_a_unet_of_rectangles_knows_its_size() -> None:
    pipe = tiny_pipeline("lowres", unet=tiny_unet("lowres", sample_size=(6, 8)))
    assert pipe(tiny_codes(3), num_inference_steps=1).images[0].size == (16, 12)
