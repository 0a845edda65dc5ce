"""The pipeline: tokens, images or a prompt in, images out."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput, is_accelerate_available
from torch import Generator, Tensor, nn

from lavit.kernels import Ragged
from lavit.pixels.conditioner import Condition, NegativeEmbeds, PixelConditioner, both_streams, zero_condition
from lavit.pixels.inputs import check_features, check_size, read_codes, read_images
from lavit.pixels.noise import image_generators, initial_noise, noise_seeds
from lavit.pixels.pretrained import public_name
from lavit.pixels.unet import SmallUNet
from lavit.pixels.validation import check_folder, check_parts
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, VisualTokens

if TYPE_CHECKING:
    from lavit.language import LaVITProcessor, SamplingSettings
    from lavit.language.inference import GeneratedTokens

logger = logging.getLogger(__name__)

# What the release's public call passes to both of its decoders: steps of DDIM and guidance.
STEPS, GUIDANCE = 25, 7.0

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class LaVITPixelOutput(BaseOutput):
    """Images, as ``output_type`` asks for.

    nsfw_content_detected: the safety checker's verdict on each, None without one. tokens: what ``generate`` drew them
    from.
    """

    images: Any
    nsfw_content_detected: list[bool] | None = None
    tokens: GeneratedTokens | None = None


class LaVITPixelPipeline(DiffusionPipeline):
    """Draws images from visual tokens with a U-Net that is conditioned on the features they decode to.

    tokenizer: decodes the codes, and encodes images. conditioner: makes features the U-Net's condition; its kind says
        whether the U-Net is in SD 1.5's layout ("lowres") or SDXL's ("highres"). unet, scheduler: diffusers'; any
        scheduler: ``pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)``. DDIM over latents
        wants ``clip_sample=False``: by default it clips what it takes for pixels in [-1, 1].
    image_processor: of the tokenizer, to read ``images``. vae: None for a U-Net that works on pixels in [-1, 1].
    safety_checker, feature_extractor: as of Stable Diffusion. requires_safety_checker: say so once when there is none.
    negative: rows stored for the other stream of guidance; None: zeros.
    default_steps, default_guidance: what a call takes that names none; None: the release's.

    Saving, loading, progress bar and offloading are diffusers'. Raises ValueError when parts do not fit together.
    """

    tokenizer: LaVITTokenizer
    conditioner: PixelConditioner
    unet: Any
    scheduler: Any
    image_processor: LaVITImageProcessor | None
    vae: Any
    safety_checker: Any
    feature_extractor: Any
    negative: NegativeEmbeds | None

    model_cpu_offload_seq = "tokenizer->conditioner->unet->vae"  # type: ignore[assignment]
    # Called in other ways than forward(), or at the end of a run: submodule by submodule they cannot be offloaded.
    _exclude_from_cpu_offload = ["tokenizer", "negative", "safety_checker"]
    _optional_components = ["image_processor", "vae", "safety_checker", "feature_extractor", "negative"]
    # diffusers' own names, so that its own callbacks work here.
    _callback_tensor_inputs = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]

    def __init__(
        self,
        tokenizer: LaVITTokenizer,
        conditioner: PixelConditioner,
        unet: UNet2DConditionModel | SmallUNet,
        scheduler: Any,
        image_processor: LaVITImageProcessor | None = None,
        vae: AutoencoderKL | None = None,
        safety_checker: nn.Module | None = None,
        feature_extractor: object | None = None,
        negative: NegativeEmbeds | None = None,
        requires_safety_checker: bool = False,
        default_steps: int | None = None,
        default_guidance: float | None = None,
    ) -> None:
        super().__init__()
        check_parts(tokenizer, conditioner, unet, vae, negative)
        if safety_checker is not None and feature_extractor is None:
            raise ValueError("feature_extractor: expected one, which the safety_checker needs, got None")
        self.register_modules(
            tokenizer=tokenizer,
            conditioner=conditioner,
            unet=unet,
            scheduler=scheduler,
            image_processor=image_processor,
            vae=vae,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            negative=negative,
        )
        self.register_to_config(
            requires_safety_checker=requires_safety_checker,
            default_steps=default_steps,
            default_guidance=default_guidance,
        )
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._interrupt = False
        self._said_unchecked = False

    def register_to_config(self, **kwargs: Any) -> None:
        """As diffusers', but this library's classes are found under ``lavit``, wherever their modules are."""
        super().register_to_config(**{name: public_name(entry) for name, entry in kwargs.items()})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any) -> Any:
        """diffusers' method. Raises FileNotFoundError naming every part that a folder lacks."""
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            check_folder(folder, kwargs)
        kwargs.setdefault("low_cpu_mem_usage", is_accelerate_available())
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    # What sizes there are.

    @property
    def kind(self) -> str:
        return self.conditioner.kind

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of a side for each latent; 1 without a VAE."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size_multiple(self) -> int:
        """What both sides of an image must be multiples of, for VAE and U-Net to halve them."""
        return self.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    # What callbacks of diffusers ask for.

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set ``_interrupt`` in a callback to leave out the remaining steps."""
        return self._interrupt

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @torch.no_grad()
    def __call__(
        self,
        tokens: VisualTokens | Ragged | None = None,
        *,
        images: Any = None,
        features: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        original_size: tuple[int, int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seeds: Sequence[int] | Tensor | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        image_seeds: Sequence[int] | Tensor | None = None,
        eta: float = 0.0,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> LaVITPixelOutput:
        """Draw an image for each item of exactly one of ``tokens``, ``images`` and ``features``.

        tokens: codes in [0, K), ragged over the images. images: drawn again by way of their codes; see
            ``inputs.read_images`` for what an image may be. features: (B, N, C_out) of ``LaVITTokenizer.decode``.
        height, width: in pixels, multiples of ``size_multiple``; by default what the U-Net was made for.
        original_size: (height, width) that a high-res U-Net is told the image came from; by default its own.
        num_inference_steps, guidance_scale: by default the pipeline's own (``default_steps``, ``default_guidance``) or
            the release's, 25 and 7 for either kind: its public call passes these to both decoders. (50 and 5 stand as
            defaults in its low-res decoder and its detokenizer, and count only where one of these is called directly.)
            A guidance of at most 1 is the condition alone, one stream; more are two, in one call of the U-Net a step.
        seeds: one an image: its noise is drawn on the CPU in float32 from a generator of its own, bitwise the same in
            any batch, on any device; the image is then the same up to the rounding of sums. generator: one, or one an
            image, as diffusers takes it. Without either, ``torch.manual_seed`` governs the seeds.
        image_seeds: of the selection of patches of ``images``; None: no noise, where the release always has some.
        eta: of DDIM, ignored by other schedulers.
        return_dict: False for the tuple (images, nsfw_content_detected).
        output_type: "pil", "np" (B, H, W, 3) and "pt" (B, 3, H, W) in [0, 1], or "latent" (B, c, h, w).
        callback_on_step_end: called as ``f(pipe, step, timestep, tensors)`` after each step with the tensors named in
            ``callback_on_step_end_tensor_inputs``; those in the dictionary that it returns replace them.

        Raises ValueError or TypeError naming the argument, and the image where one is at fault.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type: expected one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        steps = _first(num_inference_steps, self.config["default_steps"], STEPS)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"num_inference_steps: expected an integer of at least 1, got {steps!r}")
        scale = _first(guidance_scale, self.config["default_guidance"], GUIDANCE)
        if not (math.isfinite(scale) and scale >= 0):
            raise ValueError(f"guidance_scale: expected a finite number of at least 0, got {scale}")
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        known = self._callback_tensor_inputs
        if unknown := [name for name in callback_on_step_end_tensor_inputs if name not in known]:
            raise ValueError(f"callback_on_step_end_tensor_inputs: expected names of {', '.join(known)}, got {unknown}")
        size = self._size(height, width)
        self._say_unchecked()
        self._guidance_scale, self._interrupt = float(scale), False

        device = self._execution_device
        condition = self.conditioner(self._features(tokens, images, features, image_seeds, device))
        count = len(condition.embeds)
        generators = image_generators(count, seeds, generator)
        taken = inspect.signature(self.scheduler.step).parameters
        latents = self._denoise(
            self._streams(condition),
            initial_noise(
                count, (self.unet.config.in_channels, *(s // self.vae_scale_factor for s in size)), generators
            ),
            # Original size, no crop, size.
            torch.tensor([[*(original_size or size), 0, 0, *size]], dtype=torch.float32).expand(count, -1),
            steps,
            {name: value for name, value in (("generator", generators), ("eta", eta)) if name in taken},
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        drawn, flags = (latents, None) if output_type == "latent" else self._finish(latents, output_type)
        self.maybe_free_model_hooks()
        return LaVITPixelOutput(drawn, flags) if return_dict else (drawn, flags)  # type: ignore[return-value]

    def _denoise(
        self,
        streams: Condition,
        noise: Tensor,
        time_ids: Tensor,
        steps: int,
        step_arguments: dict[str, Any],
        callback: Callable[..., dict[str, Any]] | None,
        callback_inputs: Sequence[str],
    ) -> Tensor:
        """From noise (B, c, h, w) to latents, in float32: only the U-Net computes in its own precision."""
        device, dtype = self._execution_device, self.unet.dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        # The scheduler's host reads the time at every step, the U-Net on the device: neither is to wait for the other.
        self.scheduler.set_timesteps(steps)
        timesteps = self.scheduler.timesteps
        times = timesteps.to(device)
        self._num_timesteps = len(timesteps)
        embeds, pooled, mask = streams.to(device, dtype)
        tensors: dict[str, Any] = {
            "latents": noise.to(device, wide) * self.scheduler.init_noise_sigma,
            "prompt_embeds": embeds,
            "add_text_embeds": pooled,
            "add_time_ids": time_ids.to(device, dtype).repeat(2 if self.do_classifier_free_guidance else 1, 1),
        }
        if not len(noise):
            return tensors["latents"]
        with self.progress_bar(total=len(timesteps)) as progress:
            for step, timestep in enumerate(timesteps):
                if self._interrupt:
                    break
                guided, latents = self.do_classifier_free_guidance, tensors["latents"]
                both = torch.cat((latents, latents)) if guided else latents
                both = self.scheduler.scale_model_input(both, timestep).to(dtype)
                condition = Condition(tensors["prompt_embeds"], tensors["add_text_embeds"], mask if guided else None)
                arguments = condition.unet_arguments(tensors["add_time_ids"])
                predicted = self.unet(both, times[step], **arguments).sample.to(wide)
                if guided:
                    negative, positive = predicted.chunk(2)
                    predicted = negative + self._guidance_scale * (positive - negative)
                stepped = self.scheduler.step(predicted, timestep, latents, **step_arguments, return_dict=False)
                tensors["latents"] = stepped[0]
                if callback is not None:
                    tensors |= callback(self, step, timestep, {name: tensors[name] for name in callback_inputs}) or {}
                progress.update()
        return tensors["latents"]

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        made_for = self.unet.config.sample_size
        sides = made_for if isinstance(made_for, (list, tuple)) else (made_for, made_for)
        height, width = (
            side * self.vae_scale_factor if given is None else given
            for given, side in zip((height, width), sides, strict=True)
        )
        return check_size("height", height, self.size_multiple), check_size("width", width, self.size_multiple)

    def _features(
        self,
        tokens: VisualTokens | Ragged | None,
        images: Any,
        features: Tensor | None,
        image_seeds: Sequence[int] | Tensor | None,
        device: torch.device,
    ) -> Tensor:
        """What the conditioner reads, (B, N, C_out)."""
        sources = {"tokens": tokens, "images": images, "features": features}
        given = [name for name, value in sources.items() if value is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"tokens: expected exactly one of tokens, images and features, got {got}")
        config = self.tokenizer.config
        if features is not None:
            return check_features(features, config.num_patches, self.conditioner.in_dim).to(device)
        if images is not None:
            pixels = read_images(images, self.image_processor, config.image_size)
        else:
            tokens = read_codes(tokens, config.num_codes, config.num_patches)  # type: ignore[arg-type]
        # Neither encode() nor decode() is forward(), which would bring an offloaded model to the device by itself.
        hook = getattr(self.tokenizer, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(self.tokenizer)
        if images is not None:
            pixels = pixels.to(device, self.tokenizer.dtype)
            tokens = self.tokenizer.encode(pixels, seeds=image_seeds, deterministic=image_seeds is None)
        return self.tokenizer.decode(tokens.to(device))  # type: ignore[union-attr]

    def _streams(self, condition: Condition) -> Condition:
        """Both streams of guidance as one batch, or the one alone."""
        if not self.do_classifier_free_guidance:
            return condition
        if self.negative is None:
            return both_streams(zero_condition(condition), condition)
        stored = self.negative(len(condition.embeds))
        return both_streams(stored.to(condition.embeds.device, condition.embeds.dtype), condition)

    def _finish(self, latents: Tensor, output_type: str) -> tuple[Any, list[bool] | None]:
        """Latents to images in [0, 1], and what the safety checker says of them."""
        images = (self._decode(latents).float() / 2 + 0.5).clamp(0, 1)
        flags = None
        if self.safety_checker is not None and len(images):
            images, flags = self._check(images)
        if output_type == "pt":
            return images.contiguous(), flags
        array = images.permute(0, 2, 3, 1).cpu().numpy()
        if not np.isfinite(array).all():
            name = type(self.scheduler).__name__
            raise ValueError(f"images: not finite; {name} may need another number of steps, or the U-Net float32")
        return (array if output_type == "np" else self.numpy_to_pil(array)), flags

    def _decode(self, latents: Tensor) -> Tensor:
        """(B, c, h, w) latents -> (B, 3, H, W) in [-1, 1]."""
        if self.vae is None or not len(latents):
            return latents
        # SDXL's VAE overflows in half precision.
        upcast = self.vae.dtype == torch.float16 and self.vae.config.force_upcast
        if upcast:
            nn.Module.to(self.vae, torch.float32)  # diffusers' own warns of modules that there are not
        images = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype), return_dict=False)[0]
        if upcast:
            nn.Module.to(self.vae, torch.float16)
        return images

    def _check(self, images: Tensor) -> tuple[Tensor, list[bool]]:
        array = images.permute(0, 2, 3, 1).cpu().numpy()
        seen = self.feature_extractor(self.numpy_to_pil(array), return_tensors="pt").pixel_values
        seen = seen.to(images.device, getattr(self.safety_checker, "dtype", images.dtype))
        checked, flags = self.safety_checker(images=array, clip_input=seen)
        return torch.from_numpy(np.asarray(checked)).permute(0, 3, 1, 2).to(images), [bool(flag) for flag in flags]

    def _say_unchecked(self) -> None:
        if self.config["requires_safety_checker"] and self.safety_checker is None and not self._said_unchecked:
            logger.warning("the safety checker of this pipeline is off: its images are not checked")
            self._said_unchecked = True

    # By way of a language model.

    def generate(
        self,
        model: Any,
        processor: LaVITProcessor,
        prompts: Sequence[Any],
        *,
        seeds: Sequence[int] | Tensor | None = None,
        text: SamplingSettings | dict[str, Any] | None = None,
        **pixels: Any,
    ) -> LaVITPixelOutput:
        """Draw prompts of strings and images in any order: their tokens by the model, and pixels from these.

        model: a LaVIT. prompts, processor: as its ``generate_tokens`` takes them. seeds: one a sample, for its tokens
            and its noise alike. text: SamplingSettings or a dictionary of arguments of ``generate_tokens``. pixels:
            those of a call.
        Gives the images, with what they were drawn from in ``tokens``: its ``indices`` tell the prompt of each.
        Raises as ``generate_tokens`` and a call do.
        """
        codes, known = model.visual_tokenizer.config.num_codes, self.tokenizer.config.num_codes
        if codes != known:
            raise ValueError(f"model: expected one that writes the pipeline's {known} codes, got one of {codes}")
        arguments = {"settings": text} if text is not None and not isinstance(text, dict) else dict(text or {})
        drawn = model.generate_tokens(prompts, processor, seeds=seeds, **arguments)
        output = self(drawn.codes, seeds=noise_seeds(drawn, seeds, len(prompts)), **pixels)
        return LaVITPixelOutput(output.images, output.nsfw_content_detected, drawn)

    # Speed.

    def accelerate(
        self, *, compile: bool = False, channels_last: bool = False, **compile_options: Any
    ) -> LaVITPixelPipeline:
        """Make it faster, in place; returns the pipeline.

        channels_last: memory layout of U-Net and VAE, faster on GPUs with tensor cores. compile: ``torch.compile`` of
        the U-Net, with these options, at its next call; each size of image is compiled again. Attention is
        ``scaled_dot_product_attention`` in any case.
        """
        if compile_options and not compile:
            raise ValueError(f"compile: expected True with options of torch.compile ({', '.join(compile_options)})")
        if channels_last:
            for part in (self.unet, self.vae):
                if part is not None:
                    part.to(memory_format=torch.channels_last)
        if compile:
            self.unet.compile(**compile_options)
        return self


def _first(*values: Any) -> Any:
    """The first of them that is there."""
    return next(value for value in values if value is not None)
