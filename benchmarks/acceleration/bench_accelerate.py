"""``lavit.accelerate`` on modules built like the release's: as they are, with policy "exact", and with policy "fast".

``pytest benchmarks/acceleration``. Images to ids from the encoder's features on, and with the encoder; guided sampling
of image tokens, which knows no policy. Heads of 88 columns, 256 patches and a keep rate of 1/3 as in the paper; as many
blocks of the encoder to one of the merger as in the release (40 to 12), and on a CPU fewer of both, and fewer heads.

Parity: the ids of the same seed beside the modules' own; of 100, one may be another, where rounding decides.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import release_alike as release
import torch
from host_reads import host_reads
from torch import Tensor, nn

from benchmarks.timing import measure
from lavit import accelerate, restore

FORMS = ("release", "exact", "fast")
CODES, SIDE = 16384, 16
TOKENS = 24


@dataclass(frozen=True)
class Case:
    name: str
    device: str
    heads: int
    blocks: int
    batch: int

    @property
    def sizes(self) -> str:
        return f"B={self.batch} N={SIDE**2} H={self.heads} D=88, blocks {10 * self.blocks // 3}+{self.blocks}"


CASES = (
    Case("laptop", "cpu", heads=4, blocks=3, batch=8),
    Case("width 1408", "cpu", heads=16, blocks=1, batch=2),
    Case("width 1408", "cuda", heads=16, blocks=12, batch=64),
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", ["after the encoder", "whole"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.device}")
def bench_image_to_ids(benchmark, device, case, part, form):
    if case.device != device.type:
        pytest.skip(f"{case.name}: measured on {case.device}")
    tokenizer, images = setting(case)
    encoder = tokenizer.encoder
    if part != "whole":
        tokenizer.encoder = Given(features_of(case))
    try:
        bench(benchmark, device, f"images to ids, {part}, {case.name}, {case.sizes}", tokenizer, form, draw_ids(images))
    finally:
        tokenizer.encoder = encoder


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("prompts", [1, 4])
def bench_text_to_ids(benchmark, device, prompts, form):
    """A head of 48 k ids on a small model would be most of the work, and is two thirds suppressed: 12 blocks of 512."""
    torch.manual_seed(0)
    with torch.device(device):
        language_model = release.small_language_model(CODES, width=512, depth=12, heads=8)
        model = release.Generation(language_model=language_model).eval()

    def run(model: Any) -> Tensor:
        torch.manual_seed(1)
        texts = ["a red square beside a blue circle"] * prompts
        return model.generate_image_tokenids(texts, top_p=1.0, min_length=TOKENS, max_length=TOKENS, guidance_scale=4.0)

    bench(benchmark, device, f"text to {TOKENS} ids, {prompts} prompts, guided", model, form, run)


def draw_ids(images: Tensor) -> Callable[[Any], Tensor]:
    @torch.no_grad()
    def run(model: Any) -> Tensor:
        torch.manual_seed(1)
        return torch.cat(model.tokenize_image(images))

    return run


def bench(benchmark, device: torch.device, group: str, model: Any, form: str, run: Callable[[Any], Tensor]) -> None:
    own = run(model)
    with changed(model, form):
        ids = run(model)
        others = int((ids != own).sum()) if ids.shape == own.shape else ids.numel()
        with host_reads() as reads:
            run(model)
        measure(
            benchmark,
            device,
            group,
            lambda: run(model),
            implementation=form,
            baseline=form == "release",
            passed=others <= own.numel() // 100,
            parity={"other ids": others, "of": own.numel()},
            host_reads=len(reads),
        )


@contextmanager
def changed(model: nn.Module, form: str):
    if form == "release":
        yield
        return
    accelerate(model, form)
    try:
        yield
    finally:
        restore(model)


class Given(nn.Module):
    """In the encoder's place: its features."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor, return_all_features: bool = False) -> Tensor:
        return self.features


@cache
def setting(case: Case) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    with torch.device(case.device):
        blocks = 10 * case.blocks // 3, case.blocks
        tokenizer = release.Tokenizer(88 * case.heads, case.heads, *blocks, SIDE, CODES).eval()
        side = SIDE * release.PATCH
        images = torch.randn(case.batch, 3, side, side)
    with torch.no_grad():  # about a third is kept
        tokenizer.token_predictor.out_conv[4].weight.zero_()
        tokenizer.token_predictor.out_conv[4].bias.copy_(torch.tensor([0.5, 1.0]).log())
    return tokenizer, images


@cache
def features_of(case: Case) -> Tensor:
    tokenizer, images = setting(case)
    with torch.no_grad():
        return tokenizer.encoder(images, return_all_features=True)
