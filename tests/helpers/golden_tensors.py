"""Reading the golden tensors, and how far apart two results are."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lavit.tokenizer import LaVITTokenizerConfig

FOLDER = Path(__file__).parents[1] / "golden"

# Sizes of all golden files; head dimension 88 as in the release.
SIZES: dict[str, Any] = {
    "image_size": 84,
    "patch_size": 14,
    "hidden_size": 176,
    "encoder_depth": 2,
    "encoder_heads": 2,
    "encoder_head_dim": 48,
    "merger_depth": 2,
    "decoder_depth": 2,
    "num_heads": 2,
    "code_dim": 32,
    "num_codes": 512,
    "projection_dim": 64,
    "condition_dim": 24,
    "condition_dim_2": 40,
}


def golden_config(**overrides: Any) -> LaVITTokenizerConfig:
    return LaVITTokenizerConfig(**{**SIZES, **overrides})


@cache
def golden(name: str) -> dict[str, Tensor]:
    """A golden file; floating tensors in float64, in which all of them are exact."""
    tensors = load_file(FOLDER / f"{name}.safetensors")
    return {k: t.double() if t.is_floating_point() else t for k, t in tensors.items()}


def weights(name: str, prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: t for k, t in golden(name).items() if k.startswith(prefix)}


def load(module: nn.Module, name: str, prefix: str, dtype: torch.dtype) -> nn.Module:
    module = module.to(dtype)
    module.load_state_dict(weights(name, prefix))
    return module


def relative(result: Tensor, expected: Tensor) -> float:
    """The largest error of an element, relative to the largest element."""
    return ((result.double() - expected).abs().max() / expected.abs().max()).item()


def assert_within_twice(result: Tensor, plain: Tensor, exact: Tensor) -> None:
    """The worst element and the root mean square are at most twice as wrong as those of the plain formulas."""
    error, allowed = (result.double() - exact).abs(), (plain.double() - exact).abs()
    assert error.max() <= 2 * allowed.max(), (error.max().item(), allowed.max().item())
    assert error.square().mean() <= 4 * allowed.square().mean()
