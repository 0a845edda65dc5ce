"""A pipeline as a folder: what is saved draws the same, in a fresh process too, and what is missing is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from tiny_pixels import LAYOUTS, tiny_codes, tiny_pipeline, tiny_tokenizer

from lavit import LaVITPixelPipeline, LaVITTokenizer
from lavit.threads import on as on_threads
from lavit.tokenizer import LaVITImageProcessor

SETTINGS = {"seeds": [1, 2], "num_inference_steps": 2, "output_type": "pt"}

SCRIPT = """
import sys
from safetensors.torch import save_file
import torch
from lavit import LaVITPixelPipeline
from lavit.kernels import Ragged
pipe = LaVITPixelPipeline.from_pretrained(sys.argv[1])
codes = Ragged.from_list([torch.tensor([3, 1, 2]), torch.tensor([5])])
save_file({"images": pipe(codes, seeds=[1, 2], num_inference_steps=2, output_type="pt").images}, sys.argv[2])
"""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_saved_draws_the_same(layout: str, tmp_path: Path) -> None:
    pipe, codes = tiny_pipeline(layout, requires_safety_checker=layout == "lowres"), tiny_codes(3, 9)
    pipe.save_pretrained(tmp_path)
    back = LaVITPixelPipeline.from_pretrained(tmp_path)
    assert torch.equal(back(codes, **SETTINGS).images, pipe(codes, **SETTINGS).images)
    assert isinstance(back.image_processor, LaVITImageProcessor) and (back.vae is None) == (layout == "small")
    assert back.config["requires_safety_checker"] == (layout == "lowres")
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["tokenizer"] == ["lavit", "LaVITTokenizer"] and index["conditioner"] == ["lavit", "PixelConditioner"]
    assert index["negative"] == (["lavit", "NegativeEmbeds"] if layout == "lowres" else [None, None])


def test_a_pipeline_may_have_settings_of_its_own(tmp_path: Path) -> None:
    tiny_pipeline(default_steps=3, default_guidance=1.5).save_pretrained(tmp_path)
    own, codes = LaVITPixelPipeline.from_pretrained(tmp_path), tiny_codes(3, 9)
    own.set_progress_bar_config(disable=True)
    drawn = own(codes, seeds=[1, 2], output_type="pt").images
    assert own.num_timesteps == 3 and own.guidance_scale == 1.5
    plain = tiny_pipeline()(codes, seeds=[1, 2], output_type="pt", num_inference_steps=3, guidance_scale=1.5).images
    assert torch.equal(drawn, plain)
    own(codes, num_inference_steps=2, guidance_scale=1.0)
    assert own.num_timesteps == 2 and own.guidance_scale == 1.0


def test_a_fresh_process_draws_the_same(tmp_path: Path) -> None:
    """It has imported nothing of this library but the pipeline's name. Both on one thread: on others torch sums in
    another order."""
    pipe = tiny_pipeline("lowres")
    pipe.save_pretrained(tmp_path / "pipe")
    words = [sys.executable, "-c", SCRIPT, tmp_path / "pipe", tmp_path / "images"]
    subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=120)
    codes = [torch.tensor([3, 1, 2]), torch.tensor([5])]
    with on_threads(1):
        expected = pipe(type(tiny_codes(1)).from_list(codes), **SETTINGS).images
    assert torch.equal(load_file(tmp_path / "images")["images"], expected)


def test_a_changed_part_is_saved(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.image_processor = LaVITImageProcessor(16, std=(1, 1, 1))
    pipe.save_pretrained(tmp_path)
    back = LaVITPixelPipeline.from_pretrained(tmp_path)
    assert isinstance(back.scheduler, EulerDiscreteScheduler) and back.image_processor.std == (1, 1, 1)


def test_a_part_may_be_given_and_a_precision_asked_for(tmp_path: Path) -> None:
    tiny_pipeline("lowres").save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "tokenizer")
    tokenizer = tiny_tokenizer()
    back = LaVITPixelPipeline.from_pretrained(tmp_path, tokenizer=tokenizer, torch_dtype=torch.bfloat16)
    assert back.tokenizer is tokenizer and isinstance(tokenizer, LaVITTokenizer)
    assert back.unet.dtype == back.vae.dtype == back.conditioner.dtype == back.negative.dtype == torch.bfloat16


def test_every_missing_part_is_named(tmp_path: Path) -> None:
    tiny_pipeline("lowres").save_pretrained(tmp_path)
    for part in ("unet", "conditioner"):
        shutil.rmtree(tmp_path / part)
    with pytest.raises(FileNotFoundError, match=r"the pipeline lacks .*/conditioner, .*/unet$"):
        LaVITPixelPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"model_index.json: no such file"):
        LaVITPixelPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("part", ["conditioner", "unet", "negative"])
def test_tensors_that_do_not_fit_are_named(part: str, tmp_path: Path) -> None:
    layout = "small" if part == "unet" else "lowres"
    tiny_pipeline(layout).save_pretrained(tmp_path)
    path = tmp_path / part / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    name = sorted(state)[0]
    save_file({**{k: t for k, t in state.items() if k != name}, "extra": torch.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(
        ValueError, match=f"/{part}: the tensors do not fit the model: missing: {name}; unexpected: extra"
    ):
        LaVITPixelPipeline.from_pretrained(tmp_path)
    save_file({**state, name: torch.zeros(2, 3)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"/{part}: .* of another shape: {name} \(file \(2, 3\), model "):
        LaVITPixelPipeline.from_pretrained(tmp_path)
