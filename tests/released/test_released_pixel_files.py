"""The release's pixel folders, what may be wrong in them: the safety checker, two formats, the negatives' place."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from released_folder import CONFIG, KINDS, write_pixels, write_tokenizer
from safetensors.torch import load_file, save_file
from tiny_pixels import NEGATIVES, tiny_codes
from torch import Tensor

from lavit.pixels import LaVITPixelPipeline
from lavit.released.pixels import load_released_pixels

CHECKER = "pixel_decoding/safety_checker"
SETTINGS: dict[str, Any] = {"seeds": [1, 2], "num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    write_tokenizer(folder / "visual_tokenizer")
    write_pixels(folder)
    return folder


@pytest.fixture
def release(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "release"))


def load(folder: Path, **settings: Any) -> LaVITPixelPipeline:
    pipe = load_released_pixels(folder, **{"config": CONFIG, **settings})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def checker_state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / CHECKER / "model.safetensors")


def save_checker(folder: Path, state: dict[str, Tensor], form: str) -> None:
    place = folder / CHECKER
    (place / "model.safetensors").unlink(missing_ok=True)
    if form == "bin":
        torch.save(state, place / "pytorch_model.bin")
    else:
        save_file(state, place / "model.safetensors", metadata={"format": "pt"})


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


# The safety checker.


@pytest.mark.parametrize("kind", ["lowres", "highres"])
@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_both_kinds_are_checked_by_the_stored_checker(release: Path, kind: str, form: str) -> None:
    state = checker_state(release)
    save_checker(release, {**state, "vision_model.embeddings.position_ids": torch.arange(5)[None]}, form)
    pipe = load(release, kind=kind)
    found = pipe.safety_checker.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items()) and found.keys() == state.keys()
    drawn = pipe(tiny_codes(3, 9), **SETTINGS)
    assert len(drawn.nsfw_content_detected) == 2 and pipe.config["requires_safety_checker"]
    # Every image is near a concept whose threshold is lower than any cosine: all are black, without it none is.
    state["concept_embeds_weights"] = torch.full_like(state["concept_embeds_weights"], -2)
    save_checker(release, state, form)
    drawn = load(release, kind=kind)(tiny_codes(3, 9), **SETTINGS)
    assert drawn.nsfw_content_detected == [True, True] and not drawn.images.any()
    assert load(release, kind=kind, safety_checker=False)(tiny_codes(3, 9), **SETTINGS).images.any()


@pytest.mark.parametrize("kind", ["lowres", "highres"])
@pytest.mark.parametrize("part", ["safety_checker", "feature_extractor"])
def test_an_absent_checker_is_named_with_the_way_to_leave_it_out(release: Path, kind: str, part: str) -> None:
    shutil.rmtree(release / "pixel_decoding" / part)
    told = rf"\({kind}\) lacks .*pixel_decoding/{part}/.*safety_checker=False leaves .* --no-safety-checker"
    with pytest.raises(FileNotFoundError, match=told):
        load(release, kind=kind)
    assert load(release, kind=kind, safety_checker=False).safety_checker is None


@pytest.mark.parametrize("form", ["bin", "safetensors"])
@pytest.mark.parametrize("kind", ["lowres", "highres"])
def test_a_checker_that_does_not_fit_is_refused_naming_its_tensors(release: Path, kind: str, form: str) -> None:
    state = checker_state(release)
    every = {f"model.{name}": tensor for name, tensor in state.items()}
    part = {name: tensor for name, tensor in state.items() if name != "concept_embeds"}
    shape = {**state, "visual_projection.weight": torch.zeros(3, 2)}
    for changed, told in (
        (every, "missing: concept_embeds.*visual_projection.weight.*; unexpected: model.concept_embeds"),
        (part, "missing: concept_embeds$"),
        (shape, r"of another shape: visual_projection.weight \(file \(3, 2\)"),
    ):
        save_checker(release, changed, form)
        with pytest.raises(ValueError, match=f"safety_checker: the tensors do not fit the model: {told}"):
            load(release, kind=kind)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_a_damaged_checker_is_refused_naming_its_folder(release: Path, form: str) -> None:
    save_checker(release, checker_state(release), form)
    path = next((release / CHECKER).glob("*model.*"))
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"no tensors"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="safety_checker: damaged, or does not fit its config.json"):
            load(release)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda settings: settings.update(crop_size={"height": 9, "width": 9}), "crop_size: expected 8 x 8.*got .*9"),
        (lambda settings: settings.update(image_processor_type="ViTImageProcessor"), "expected a CLIPImageProcessor"),
        (lambda settings: settings.clear(), "expected a CLIPImageProcessor"),
    ],
)
def test_an_extractor_that_is_not_the_checkers_is_refused(
    release: Path, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    path = release / "pixel_decoding" / "feature_extractor" / "preprocessor_config.json"
    rewrite(path, change)
    with pytest.raises(ValueError, match=f"preprocessor_config.json: {told}"):
        load(release)
    path.write_text("{")
    with pytest.raises(ValueError, match="preprocessor_config.json: damaged or no JSON"):
        load(release)


# The other parts.


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda settings: settings.clear(), "it lacks beta_start, beta_end, beta_schedule, num_train_timesteps"),
        (lambda settings: settings.pop("beta_end"), "it lacks beta_end"),
        (lambda settings: settings.update(beta_schedule="steep"), "no settings for DDIM .*steep"),
        (lambda settings: settings.update(beta_start="low"), "no settings for DDIM"),
    ],
)
def test_a_scheduler_without_its_noise_levels_is_refused(
    release: Path, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    path = release / "pixel_decoding" / "scheduler" / "scheduler_config.json"
    rewrite(path, change)
    with pytest.raises(ValueError, match=f"scheduler_config.json: .*{told}"):
        load(release)


@pytest.mark.parametrize("kind", ["lowres", "highres"])
def test_of_two_formats_the_releases_counts_and_the_other_is_named(
    release: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = load(release, kind=kind)
    place = release / KINDS[kind]
    unet = torch.load(place / "unet" / "diffusion_pytorch_model.bin", weights_only=True)
    save_file({k: t + 1 for k, t in unet.items()}, place / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(place / "vae" / "diffusion_pytorch_model.safetensors")
    torch.save({k: t + 1 for k, t in vae.items()}, place / "vae" / "diffusion_pytorch_model.bin")
    torch.save({k: t + 1 for k, t in checker_state(release).items()}, release / CHECKER / "pytorch_model.bin")
    with caplog.at_level(logging.WARNING, "lavit.released"):
        both = load(release, kind=kind)
    for part in ("unet", "vae", "safety_checker"):
        ours, wanted = (getattr(pipe, part).state_dict() for pipe in (both, plain))
        assert all(torch.equal(t, wanted[name]) for name, t in ours.items())
    for name in ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin", "pytorch_model.bin"):
        assert any(f"{name}: not read" in line for line in caplog.messages)
    # One alone is read, whichever it is.
    (place / "unet" / "diffusion_pytorch_model.bin").unlink()
    assert torch.equal(load(release, kind=kind).unet.conv_in.bias, unet["conv_in.bias"] + 1)


def test_negatives_in_the_releases_place_count_and_others_are_named(
    release: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(torch.zeros(NEGATIVES, 8), release / "uncond_embeddings.bin")
    with caplog.at_level(logging.WARNING, "lavit.released"):
        pipe = load(release)
    assert pipe.negative.embeds.any()
    (line,) = (text for text in caplog.messages if "uncond_embeddings.bin: not read" in text)
    assert line.startswith(str(release / "uncond_embeddings.bin"))


@pytest.mark.parametrize("kind", ["lowres", "highres"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_written_over_in_place_leave_a_loaded_pipeline_as_it_was(
    release: Path, kind: str, dtype: torch.dtype
) -> None:
    pipe = load(release, kind=kind, dtype=dtype, visual_dtype=dtype)
    parts = {name: part for name, part in pipe.components.items() if hasattr(part, "state_dict")}
    before = {name: {k: t.clone() for k, t in part.state_dict().items()} for name, part in parts.items()}
    for path in [*release.rglob("*.bin"), *release.rglob("*.safetensors")]:
        with path.open("r+b") as file:
            file.write(bytes([255]) * path.stat().st_size)
    for name, part in parts.items():
        assert all(torch.equal(t, before[name][k]) for k, t in part.state_dict().items()), name
        floats = {t.dtype for k, t in part.state_dict().items() if t.is_floating_point()}
        assert floats == ({dtype} if name != "tokenizer" else {dtype, torch.float32}), name
