"""It does not matter how a step's images are divided into micro-batches and processes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from processes import on_two_processes
from tiny_tokenizer import TINY
from torch import Tensor

from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig
from lavit.training.tokenizer.train import train_tokenizer

IMAGES, STEPS = 8, 3
NUMBERS = ("loss", "reconstruction_loss", "ratio_loss", "commitment_loss", "keep_rate", "grad_norm")

DYING = {"dead_code_fraction": 0.9, "ema_decay": 0.5}  # so that the substitutes of dead codes are compared, too
# What of the tokenizer, what of the recipe.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "packed": ({"ratio_low": 0.9, "ratio_high": 1.1}, {"first_phase": 0.0}),
    "exact": ({"selector_gradient": "exact"}, {"first_phase": 0.0}),
    "each image": ({"ratio_scope": "image"}, {"first_phase": 0.0}),
    "warm": ({}, {"warm_start.fraction": 0.9, "first_phase": 0.4}),
    "without noise": ({}, {"noise.start": 0.0, "noise.end": 0.0, "first_phase": 0.0}),
}
DIVISIONS = {"one by one": [1] * 8, "in twos": [2, 2, 2, 2], "uneven": [1, 4, 3]}


def images_of(step: int) -> dict[str, Tensor]:
    """Images of very different brightness and detail, so that parts of a batch are not alike."""
    generator = torch.Generator().manual_seed(100 + step)
    scale = torch.linspace(0.2, 3, IMAGES)[torch.randperm(IMAGES, generator=generator)].view(-1, 1, 1)
    features = scale * torch.randn(IMAGES, 16, 16, generator=generator)
    bright = torch.rand(IMAGES, 16, 1, generator=generator) < 0.05 * torch.arange(1, 9).view(-1, 1, 1)
    return {"features": (features + 3 * bright).double(), "seeds": torch.arange(IMAGES) + 1000 * step}


class Divided:
    """Every step's images in parts of the given sizes, of which this process has those from `first` on."""

    def __init__(self, sizes: list[int], first: int = 0, count: int | None = None) -> None:
        count = len(sizes) if count is None else count
        self.parts = iter(
            [
                {name: value.split(sizes)[part] for name, value in images_of(step).items()}
                for step in range(STEPS)
                for part in range(first, first + count)
            ]
        )

    def __next__(self) -> dict[str, Tensor]:
        return next(self.parts)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def untrained(case: str) -> LaVITTokenizer:
    torch.manual_seed(1)
    model = LaVITTokenizer(LaVITTokenizerConfig.preset("small", **(TINY | DYING | CASES[case][0]))).double()
    codes = torch.randn(model.quantize.embedding.weight.shape, dtype=torch.float64)
    model.quantize.embedding.weight.copy_(torch.nn.functional.normalize(codes, dim=1))
    return model


@cache
def whole_batch(case: str) -> dict[str, Tensor]:
    return trained(case, [IMAGES])


def trained(case: str, sizes: list[int], first: int = 0, count: int | None = None) -> dict[str, Tensor]:
    """What three steps make of the tokenizer, and the numbers that they report."""
    model = untrained(case)
    micro_batches = len(sizes) if count is None else count
    changes = {
        "loop.steps": STEPS,
        "loop.batch_size": IMAGES // len(sizes),
        "loop.accumulate": micro_batches,
        "loop.log_every": 1,
        "loop.clip": 0.0,
        "codebook": "keep",
        "cache.enabled": False,
        "tensorboard": False,
        "schedule.warmup": 1,
        "optimizer.eps": 1e-2,  # AdamW divides by gradients: of those near 0 nothing but rounding would be left
    }
    config = TokenizerTrainingConfig.recipe("small", changes | CASES[case][1])
    history = train_tokenizer(config, model=model, stream=Divided(sizes, first, count)).history
    found = {f"{name} of step {row['step']}": torch.tensor(row[name]) for row in history for name in NUMBERS}
    if history and "contrast_loss" in history[0]:
        found["contrast_loss"] = torch.tensor([row["contrast_loss"] for row in history])
    return found | model.state_dict() | {"usage": model.quantize.usage()}


def assert_alike(found: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        # The shares are float32.
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, of=name: f"{of}: {text}")


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("case", CASES)
def test_any_division_into_micro_batches_gives_what_the_whole_batch_gives(case: str, division: str) -> None:
    whole = whole_batch(case)
    assert_alike(trained(case, DIVISIONS[division]), whole)
    start = untrained(case).state_dict()
    moved = [name for name, value in start.items() if not torch.equal(value, whole[name])]
    assert {"token_predictor.in_conv.1.weight", "causal_encoder.blocks.0.mlp.fc1.weight"} <= set(moved)
    assert ("quantize.embedding.weight" in moved) and whole["usage"].sum() > 0


def one_of_two(rank: int, folder: str, case: str, sizes: list[int], counts: list[int]) -> None:
    found = trained(case, sizes, sum(counts[:rank]), counts[rank])
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sizes", [[4, 4], [2, 2, 2, 2], [1, 2, 4, 1]], ids=str)
def test_two_processes_give_what_one_gives(tmp_path: Any, case: str, sizes: list[int]) -> None:
    whole = whole_batch(case)
    counts = [len(sizes) // 2] * 2
    on_two_processes(one_of_two, tmp_path, case, sizes, counts)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    numbers = [name for name in first if " of step " in name or name == "contrast_loss"]
    assert_alike(first, whole)
    assert_alike(second, {name: value for name, value in whole.items() if name not in numbers})  # the first reports
