"""Codes to pixels as the release's own code drew them, from the same noise: condition, first step, latents, image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from release_models import golden, new_pipeline
from release_recipe import decoded, noise
from torch import Tensor

from lavit.kernels import Ragged
from lavit.pixels import LaVITPixelPipeline, pipeline

CODES = Ragged.from_list([torch.tensor(row) for row in decoded()])


@pytest.fixture(scope="module", params=["lowres", "highres"])
def pipe(request: pytest.FixtureRequest) -> LaVITPixelPipeline:
    return new_pipeline(request.param)


@pytest.fixture
def calls(pipe: LaVITPixelPipeline, monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What the U-Net is called with, then what it gives. All begins with the recipe's noise."""
    monkeypatch.setattr(pipeline, "initial_noise", lambda count, shape, generators: noise("latents", count, *shape))
    seen: list[Any] = []
    forward = pipe.unet.forward

    def spy(*arguments: Any, **named: Any) -> Any:
        out = forward(*arguments, **named)
        seen.append((arguments, named, out.sample))
        return out

    monkeypatch.setattr(pipe.unet, "forward", spy)
    return seen


def close(found: Tensor, expected: Tensor) -> None:
    """As the golden files ask for in float32: 1e-5 of the greatest."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_the_condition_is_the_releases(pipe: LaVITPixelPipeline) -> None:
    with torch.no_grad():
        condition = pipe.conditioner(pipe.tokenizer.decode(CODES))
    close(condition.embeds, golden("pixels")[f"{pipe.kind}_condition"])
    if pipe.kind == "highres":
        assert condition.pooled is not None
        close(condition.pooled, golden("pixels")["highres_pooled"])


def test_the_unet_is_called_as_the_release_calls_it(pipe: LaVITPixelPipeline, calls: list[Any]) -> None:
    """Negatives first: stored ones under their mask, or zeros with pooled zeros and the same times."""
    pipe(CODES, num_inference_steps=25, output_type="latent")
    found, kind = golden("pixels"), pipe.kind
    (latents, time), named, predicted = calls[0]
    assert [int(time) for (_, time), _, _ in calls] == found[f"{kind}_times"].tolist()
    assert int(time) == int(found[f"{kind}_first_time"])
    close(latents, found[f"{kind}_noise"].repeat(2, 1, 1, 1))
    close(named["encoder_hidden_states"][:2, :16], found[f"{kind}_hidden_states"])
    close(named["encoder_hidden_states"][2:], found[f"{kind}_condition"])
    assert not named["encoder_hidden_states"][:2, 16:].any()
    if kind == "lowres":
        assert torch.equal(named["encoder_attention_mask"].bool(), found["lowres_mask"])
    else:
        added = named["added_cond_kwargs"]
        assert torch.equal(added["time_ids"], found["highres_time_ids"])
        close(added["text_embeds"], found["highres_text_embeds"])
    close(predicted, found[f"{kind}_predicted"])


def test_an_original_size_is_said_as_in_the_release(calls: list[Any], pipe: LaVITPixelPipeline) -> None:
    if pipe.kind == "highres":
        pipe(CODES, height=64, width=96, original_size=(100, 70), num_inference_steps=1, output_type="latent")
        assert torch.equal(calls[0][1]["added_cond_kwargs"]["time_ids"], golden("pixels")["highres_other_time_ids"])


def test_latents_and_images_after_all_steps_are_the_releases(pipe: LaVITPixelPipeline, calls: list[Any]) -> None:
    """With no settings given, as the release's own call was made: 25 steps, guidance 7, for either kind."""
    latents = pipe(CODES, output_type="latent").images
    assert len(calls) == 25
    close(latents, golden("pixels")[f"{pipe.kind}_latents"])
    images = torch.stack([torch.tensor(list(image.tobytes())) for image in pipe(CODES).images])
    wanted = golden("pixels")[f"{pipe.kind}_images"].flatten(1).long()
    assert (images - wanted).abs().max() <= 1 and (images != wanted).float().mean() < 1e-3  # halves round either way
