"""The schedulers that the commands offer: any class, over the noise levels that the U-Net has learned."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from tiny_models import pixel_pipeline, tokenizer

from lavit.commands import pixel_options
from lavit.kernels import Ragged

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # schedulers on NumPy 2

LEARNED = {"beta_end": 0.013, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}


def names() -> list[str]:
    with pytest.raises(ValueError, match=r"--scheduler: expected one of .*, got Newton") as caught:
        pixel_options._scheduler(DDIMScheduler(), "Newton", None)
    return str(caught.value).removeprefix("--scheduler: expected one of ").removesuffix(", got Newton").split(", ")


def test_a_scheduler_is_found_by_its_name_with_and_without_its_endings():
    assert {"DDIM", "DPMSolverMultistep", "Euler", "EulerAncestral", "PNDM", "UniPCMultistep"} <= set(names())
    for name in ("Euler", "euler", "EulerDiscrete", "EulerDiscreteScheduler", "EulerScheduler"):
        assert type(pixel_options._scheduler(DDIMScheduler(), name, 3)).__name__ == "EulerDiscreteScheduler"
    for name in ("", "Scheduler", "Eule", "EDMEuler"):
        with pytest.raises(ValueError, match="--scheduler: expected one of"):
            pixel_options._scheduler(DDIMScheduler(), name, None)


@pytest.mark.parametrize("own", [DDIMScheduler(**LEARNED), DPMSolverMultistepScheduler(**LEARNED)])
def test_every_scheduler_has_the_noise_levels_and_the_prediction_of_the_folders(own):
    for name in names():
        scheduler = pixel_options._scheduler(own, name, 4)
        assert torch.equal(scheduler.alphas_cumprod, own.alphas_cumprod), name
        assert scheduler.config.prediction_type == "v_prediction", name


def test_defaults_that_were_not_written_down_carry_over_too():
    """Another class has other defaults: 0.012 for the last beta of Heun, 0.02 of DDIM."""
    own = DDIMScheduler()
    assert torch.equal(pixel_options._scheduler(own, "Heun", None).alphas_cumprod, own.alphas_cumprod)


def test_what_a_scheduler_draws_depends_on_the_seed_alone():
    pipeline, codes = pixel_pipeline(tokenizer()), torch.tensor([1, 2, 3])
    pipeline.set_progress_bar_config(disable=True)
    own = pipeline.scheduler
    for name in names():
        pipeline.scheduler = pixel_options._scheduler(own, name, 4)
        one, two = (
            np.asarray(pipeline(Ragged.from_list([codes] * count), seeds=range(count), num_inference_steps=4).images[0])
            for count in (1, 2)
        )
        assert np.abs(one.astype(int) - two).max() <= 1, name
        assert one.std() > 20, name


def test_a_number_of_steps_that_a_scheduler_cannot_go_is_refused():
    with pytest.raises(ValueError, match="--scheduler: PNDM cannot draw in 3 steps with this pipeline: "):
        pixel_options._scheduler(DDIMScheduler(), "PNDM", 3)


def test_the_weights_of_convolutions_lie_channels_last(tmp_path):
    pixel_pipeline(tokenizer()).save_pretrained(tmp_path)
    options = argparse.Namespace(scheduler=None, compile=False)
    pipeline = pixel_options.ready(str(tmp_path), torch.device("cpu"), options)
    weights = [weight for weight in pipeline.unet.parameters() if weight.ndim == 4]
    assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
