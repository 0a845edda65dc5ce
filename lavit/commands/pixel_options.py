"""What the commands that draw pixels share: their options, and the drawing."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lavit.commands.model_folders import cannot_compile, load_pixels
from lavit.commands.options import add_encoder, add_machine, check_at_least, only_given
from lavit.data.images import BLACKENED

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from lavit.kernels import Ragged
    from lavit.pixels import LaVITPixelPipeline

# What the weights of a U-Net depend on, in a scheduler's configuration.
LEARNED = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")

# Compatible by name alone: one knows no betas, the other draws noise that no seed of an image governs.
UNFIT = ("EDMEulerScheduler", "DPMSolverSDEScheduler")

FOLDERS = """A model that draws is two folders: --model, the language model that `lavit train language` left, and
--pixels, the pipeline that `lavit train pixels` left, by default `pixels` in the former. Both hold
the same tokenizer."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of the pixels."""
    add = parser.add_argument
    add("--steps", type=int, metavar="N", help="of denoising; else the pipeline's own, or 25")
    add("--guidance", type=float, metavar="G", help="of the pixels by the tokens, 1 is off; else its own, or 7")
    add("--size", metavar="WxH", help="width and height in pixels, such as 1152x896; else what the model was made for")
    add("--scheduler", metavar="NAME", help="of the steps: DPMSolverMultistep, Euler, ...; else the pipeline's own")
    add_machine(parser, 16)
    add_encoder(parser, "compile the U-Net, a minute or more at first, and the encoder, up to a minute")


def check_options(options: argparse.Namespace) -> None:
    """ValueError naming the option that is out of range. Leaves what the pipeline is called with as ``drawing``."""
    check_at_least(options, batch_size=1, steps=1, guidance=0, seed=0)
    if options.seed is not None and options.seed >= 2**63:
        raise ValueError(f"--seed: expected a number below 2**63, got {options.seed}")
    options.drawing = only_given(num_inference_steps=options.steps, guidance_scale=options.guidance)
    if options.size is not None:
        sides = re.fullmatch(r"(\d+)[xX](\d+)", options.size)
        if sides is None:
            raise ValueError(f"--size: expected width and height such as 1152x896, got {options.size}")
        options.drawing |= {"width": int(sides[1]), "height": int(sides[2])}


def ready(folder: str, device: torch.device, options: argparse.Namespace) -> LaVITPixelPipeline:
    """The pipeline of a folder, as --scheduler and --compile ask for; its progress is shown where somebody looks."""
    pipeline = load_pixels(folder, device)
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    if options.scheduler is not None:
        pipeline.scheduler = _scheduler(pipeline.scheduler, options.scheduler, options.steps)
    # Channels last is made for GPUs, and no slower on CPUs.
    return pipeline.accelerate(compile=options.compile, channels_last=True)


def _scheduler(own: Any, name: str, steps: int | None) -> Any:
    """A scheduler of another class over the noise levels, and of the prediction, that the U-Net has learned."""
    from diffusers import SchedulerMixin

    # Those whose libraries are absent are no schedulers but stand-ins.
    found = {kind.__name__: kind for kind in own.compatibles if issubclass(kind, SchedulerMixin)}
    known = {_short(full): kind for full, kind in found.items() if full not in UNFIT}
    names = {short.lower(): short for short in sorted(known)}
    short = names.get(_short(name).lower())
    if short is None:
        raise ValueError(f"--scheduler: expected one of {', '.join(names.values())}, got {name}")
    try:
        # It leaves out by itself what was not set but a default, and other classes have other defaults.
        learned = {key: own.config[key] for key in LEARNED if key in own.config}
        scheduler = known[short].from_config(own.config, **learned)
        if steps is not None:
            scheduler.set_timesteps(steps)
    except (ValueError, NotImplementedError) as error:
        at = "" if steps is None else f" in {steps} steps"
        raise ValueError(f"--scheduler: {short} cannot draw{at} with this pipeline: {error}") from error
    return scheduler


def _short(name: str) -> str:
    """EulerDiscreteScheduler is Euler."""
    return re.sub("(Discrete)?(Scheduler)?$", "", name, flags=re.IGNORECASE)


def draw(
    pipeline: LaVITPixelPipeline, codes: Ragged, seeds: Sequence[int], names: Sequence[str], settings: dict[str, Any]
) -> list[Image.Image]:
    """An image for each row of codes; says which of them (by their names) the safety checker has blackened, and marks
    them by BLACKENED in their ``info``."""
    try:
        drawn = pipeline(codes, seeds=seeds, **settings)
    except RuntimeError as error:
        if (reason := cannot_compile(error)) is None:
            raise
        raise ValueError(f"--compile: the U-Net cannot be compiled here: {reason}") from error
    for name, image, flagged in zip(names, drawn.images, drawn.nsfw_content_detected or (), strict=False):
        if flagged:
            image.info[BLACKENED] = True
            print(f"lavit: {name} was blackened by the safety checker", file=sys.stderr)
    return list(drawn.images)
