"""The release's pixel folders: small random models in its exact layout, and every missing part named."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from released_folder import CONFIG, released_tokenizer, write_pixels, write_tokenizer
from tiny_pixels import NEGATIVES, PATCHES, SIDE, tiny_codes, tiny_negative, tiny_unet, tiny_vae

from lavit.pixels import LaVITPixelPipeline
from lavit.released.pixels import load_released_pixels

SETTINGS: dict[str, Any] = {"seeds": [1, 2], "num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer and both pixel folders."""
    folder = tmp_path_factory.mktemp("release")
    write_tokenizer(folder / "visual_tokenizer")
    write_pixels(folder)
    return folder


@pytest.fixture
def release(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "release"))


def quiet(pipe: LaVITPixelPipeline) -> LaVITPixelPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("kind", ["lowres", "highres"])
def test_a_released_folder_is_a_pipeline(whole: Path, kind: str) -> None:
    pipe = quiet(load_released_pixels(whole, kind=kind, config=CONFIG, safety_checker=False))
    tokenizer = released_tokenizer(kind)
    assert pipe.kind == kind and isinstance(pipe.scheduler, DDIMScheduler)
    assert pipe.scheduler.config.beta_schedule == "scaled_linear" and not pipe.scheduler.config.clip_sample
    assert pipe.image_processor.size == SIDE and pipe.config["requires_safety_checker"]
    assert (pipe.negative is None) == (kind == "highres")
    if pipe.negative is not None:
        assert torch.equal(pipe.negative.embeds, tiny_negative().embeds) and len(pipe.negative.embeds) == NEGATIVES
    codes = tiny_codes(3, PATCHES)
    decoder = tokenizer.decoder
    expected = decoder.condition(decoder(codes.with_values(pipe.tokenizer.quantize.lookup(codes.values))))
    condition = pipe.conditioner(pipe.tokenizer.decode(codes))
    for part, wanted in zip(condition, expected if kind == "highres" else (expected,), strict=False):
        torch.testing.assert_close(part, wanted, rtol=1e-5, atol=1e-6)
    by_hand = quiet(LaVITPixelPipeline(**{**pipe.components, "unet": tiny_unet(kind), "vae": tiny_vae()}))
    drawn = pipe(codes, **SETTINGS).images
    assert torch.equal(drawn, by_hand(codes, **SETTINGS).images) and drawn.std() > 0


def test_the_released_safety_checker_is_used(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    off = "the safety checker of this pipeline is off: its images are not checked"
    pipe = quiet(load_released_pixels(whole, config=CONFIG))
    with caplog.at_level(logging.WARNING):
        drawn = pipe(tiny_codes(3, 9), **SETTINGS)
        assert len(drawn.nsfw_content_detected) == 2 and off not in caplog.messages
        without = quiet(load_released_pixels(whole, config=CONFIG, safety_checker=False))
        assert without(tiny_codes(3, 9), **SETTINGS).nsfw_content_detected is None and off in caplog.messages


def test_a_loaded_release_is_saved_and_comes_back(whole: Path, tmp_path: Path) -> None:
    pipe = quiet(load_released_pixels(whole, config=CONFIG))
    pipe.save_pretrained(tmp_path)
    back = quiet(LaVITPixelPipeline.from_pretrained(tmp_path))
    assert isinstance(back.safety_checker, StableDiffusionSafetyChecker) and back.feature_extractor is not None
    assert torch.equal(back(tiny_codes(3, 9), **SETTINGS).images, pipe(tiny_codes(3, 9), **SETTINGS).images)


def test_precision_of_pixels_and_of_the_tokenizer(whole: Path) -> None:
    pipe = load_released_pixels(whole, kind="highres", config=CONFIG, dtype=torch.bfloat16)
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.conditioner.dtype == torch.bfloat16
    assert pipe.tokenizer.dtype == torch.float32


@pytest.mark.parametrize("place", ["uncond_embeddings.bin", "pixel_decoding/uncond_embeddings.bin"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_negatives_beside_the_folder_or_in_it(release: Path, place: str, wrapped: bool) -> None:
    (release / "pixel_decoding" / "uncond_embeddings.bin").unlink()
    rows = torch.randn(NEGATIVES, 8)
    torch.save({"uncond": rows} if wrapped else rows, release / place)
    pipe = load_released_pixels(release, config=CONFIG, safety_checker=False)
    assert torch.equal(pipe.negative.embeds, rows)


def test_every_missing_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "visual_tokenizer").mkdir()
    names = {
        "lowres": "tokenizer_encoder.bin tokenizer_decoder.bin scheduler_config.json unet/config.json vae/config.json "
        "preprocessor_config.json safety_checker/config.json uncond_embeddings.bin unet/diffusion_pytorch_model "
        "vae/diffusion_pytorch_model safety_checker/model.safetensors",
        "highres": "tokenizer_encoder.bin highres_tokenizer_decoder.bin highres_pixel_decoding/unet/config.json "
        "highres_pixel_decoding/scheduler highres_pixel_decoding/vae/diffusion_pytorch_model",
    }
    for kind, wanted in names.items():
        with pytest.raises(FileNotFoundError) as error:
            load_released_pixels(tmp_path, kind=kind)
        assert all(name in str(error.value) for name in wanted.split())


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler", "safety_checker", "feature_extractor"])
def test_a_missing_folder_is_named(release: Path, part: str) -> None:
    shutil.rmtree(release / "pixel_decoding" / part)
    with pytest.raises(FileNotFoundError, match=rf"the released pixel stage \(lowres\) lacks .*pixel_decoding/{part}/"):
        load_released_pixels(release, config=CONFIG)
    if part in ("safety_checker", "feature_extractor"):
        load_released_pixels(release, config=CONFIG, safety_checker=False)


def test_tensors_that_do_not_fit_are_named(release: Path) -> None:
    path = release / "pixel_decoding" / "unet" / "diffusion_pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    torch.save({**{k: t for k, t in state.items() if k != "conv_in.bias"}, "extra": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="pixel_decoding/unet: .* missing: conv_in.bias; unexpected: extra"):
        load_released_pixels(release, config=CONFIG)
    torch.save({**state, "conv_in.bias": torch.zeros(7)}, path)
    with pytest.raises(ValueError, match=r"of another shape: conv_in.bias \(file \(7,\), model \(4,\)\)"):
        load_released_pixels(release, config=CONFIG)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="pixel_decoding/unet: damaged"):
        load_released_pixels(release, config=CONFIG)


def test_no_code_of_a_file_is_run(release: Path) -> None:
    class Loud:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, ("raise SystemExit('run')",)

    for path in ("pixel_decoding/unet/diffusion_pytorch_model.bin", "pixel_decoding/uncond_embeddings.bin"):
        kept = (release / path).read_bytes()
        torch.save({"conv_in.bias": Loud()}, release / path)
        with pytest.raises(ValueError, match=str(Path(path).parts[-1 if "/" not in path else 1])):
            load_released_pixels(release, config=CONFIG)
        (release / path).write_bytes(kept)


def test_what_cannot_be_is_refused(release: Path) -> None:
    with pytest.raises(ValueError, match="kind: expected one of lowres, highres, got 'midres'"):
        load_released_pixels(release, kind="midres")
    torch.save([1, 2], release / "pixel_decoding" / "uncond_embeddings.bin")
    with pytest.raises(ValueError, match="uncond_embeddings.bin: expected a tensor, got list"):
        load_released_pixels(release, config=CONFIG)
    torch.save(torch.zeros(2, 5, 8), release / "pixel_decoding" / "uncond_embeddings.bin")
    with pytest.raises(ValueError, match="uncond_embeddings.bin: embeds: expected floats of shape"):
        load_released_pixels(release, config=CONFIG)
    torch.save(torch.zeros(5, 9), release / "pixel_decoding" / "uncond_embeddings.bin")
    with pytest.raises(ValueError, match="negative: expected rows of width 8, got 9"):
        load_released_pixels(release, config=CONFIG)
    config = release / "pixel_decoding" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="scheduler_config.json: expected a JSON object, got list"):
        load_released_pixels(release, config=CONFIG)
