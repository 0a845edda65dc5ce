"""Offloading, as accelerate does it for diffusers: the pictures stay, and where it cannot be it says why."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pixels import LAYOUTS, SIDE, tiny_codes, tiny_pipeline

from lavit import LaVITPixelPipeline

SETTINGS = {"seeds": [1, 2], "num_inference_steps": 2, "output_type": "pt"}
METHODS = ("enable_model_cpu_offload", "enable_sequential_cpu_offload")

accelerated = pytest.mark.skipif(find_spec("accelerate") is None, reason="needs accelerate")


def inputs() -> list[dict[str, Any]]:
    images = torch.rand(2, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte()
    return [{"tokens": tiny_codes(3, 9)}, {"images": list(images.numpy())}]


@pytest.mark.parametrize("method", METHODS)
def test_without_a_device_to_compute_on_it_is_refused_and_the_pipeline_still_draws(method: str) -> None:
    if torch.accelerator.is_available() and find_spec("accelerate") is not None:
        pytest.skip("there is an accelerator")
    pipe = tiny_pipeline("small")
    expected = pipe(tiny_codes(3, 9), **SETTINGS).images
    kind, reason = (ImportError, "accelerate v") if find_spec("accelerate") is None else (RuntimeError, "accelerator")
    with pytest.raises(kind, match=f"`{method}` requires `?{reason}"):
        getattr(pipe, method)()
    assert torch.equal(pipe(tiny_codes(3, 9), **SETTINGS).images, expected)


@accelerated
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loading_into_empty_weights_changes_no_picture(layout: str, tmp_path: Path) -> None:
    tiny_pipeline(layout).save_pretrained(tmp_path)
    expected = tiny_pipeline(layout)(tiny_codes(3, 9), **SETTINGS).images
    for arguments in ({}, {"low_cpu_mem_usage": True}, {"low_cpu_mem_usage": False}):
        loaded = LaVITPixelPipeline.from_pretrained(tmp_path, **arguments)
        assert torch.equal(loaded(tiny_codes(3, 9), **SETTINGS).images, expected)


@accelerated
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_are_brought_one_after_the_other_and_draw_the_same(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.hooks import CpuOffload

    brought: list[torch.nn.Module] = []
    bring = CpuOffload.pre_forward

    def noted(hook: Any, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        brought.append(module)
        return bring(hook, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", noted)
    for given in inputs():
        expected = tiny_pipeline(layout)(**given, **SETTINGS).images
        pipe = tiny_pipeline(layout)
        pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(2):  # the hooks are made anew after every call
            brought.clear()
            assert torch.equal(pipe(**given, **SETTINGS).images, expected)
            used = [pipe.tokenizer, pipe.conditioner, pipe.unet, pipe.unet, pipe.vae]
            assert brought == [part for part in used if part is not None]


@accelerated
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_that_are_away_between_calls_draw_the_same(layout: str) -> None:
    """What enable_sequential_cpu_offload does; it takes no CPU, which it would number."""
    from accelerate import cpu_offload

    for given in inputs():
        expected = tiny_pipeline(layout)(**given, **SETTINGS).images
        pipe = tiny_pipeline(layout)
        parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        away = {name: part for name, part in parts.items() if name not in pipe._exclude_from_cpu_offload}
        for part in away.values():
            cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
        for _ in range(2):
            assert torch.equal(pipe(**given, **SETTINGS).images, expected)
            assert all(weight.device.type == "meta" for part in away.values() for weight in part.parameters())
