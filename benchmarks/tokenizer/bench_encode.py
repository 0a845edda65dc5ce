"""From images to codes: the whole way, encoder included, as the release goes it and as this library does.

``pytest benchmarks/tokenizer/bench_encode.py``. On a CPU the small preset; on a GPU the paper's model with random
weights in bfloat16. "release" merges all rows by its formula with N x N weights in memory, picks the kept ones by a
mask, for which the host waits, and looks for codes in the whole matrix of distances; the encoder is the same for all.

Parity: ids from the same features and selection, beside the release's way in the next precision up. Twice as many may
be others as by the release's way in the same precision, and one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from benchmarks.timing import measure
from benchmarks.tokenizer.bench_merger import release as release_merger
from lavit.kernels.types import compute_dtype
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig
from lavit.tokenizer.selector import in_precision

FORMS = ("release", "dense", "packed")


@dataclass(frozen=True)
class Case:
    preset: str
    device: str
    batch: int
    dtype: torch.dtype


CASES = (Case("small", "cpu", 64, torch.float32), Case("lavit-g", "cuda", 64, torch.bfloat16))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.preset)
def bench_encode(benchmark, device, case, form):
    if case.device != device.type:
        pytest.skip(f"{case.preset}: measured on {case.device}")
    model, images = setting(case)
    features = features_of(case)
    truth = codes(exact(case), "release", None, features.to(exact(case).dtype))
    others = {name: int((codes(model, name, None, features) != truth).sum()) for name in ("release", form)}
    measure(
        benchmark,
        device,
        f"images to codes, {case.preset}, B={case.batch}",
        lambda: codes(model, form, images, None),
        implementation=form,
        baseline=form == "release",
        passed=others[form] <= 2 * others["release"] + 1,
        parity={"other ids": others[form], "of": len(truth), "release": others["release"]},
        samples=case.batch,
        kept=len(truth),
    )


@cache
def setting(case: Case) -> tuple[LaVITTokenizer, Tensor]:
    torch.manual_seed(0)
    config = LaVITTokenizerConfig.preset(case.preset)
    with torch.device(case.device):
        model = LaVITTokenizer(config).to(case.dtype).eval()  # type: ignore[arg-type]
        images = torch.randn(case.batch, 3, config.image_size, config.image_size).to(case.dtype)
    with torch.no_grad():  # about a third is kept
        model.token_predictor.out_conv[-1].bias.copy_(torch.tensor([0.5, 1.0]).log())
    return model, images


@cache
def exact(case: Case) -> LaVITTokenizer:
    dtype = torch.float64 if case.dtype == torch.float32 else torch.float32
    return copy.deepcopy(setting(case)[0]).to(dtype)  # type: ignore[arg-type]


@cache
def features_of(case: Case) -> Tensor:
    model, images = setting(case)
    return model.encode_features(images)


@torch.no_grad()
def codes(model: LaVITTokenizer, form: str, images: Tensor | None, features: Tensor | None) -> Tensor:
    """(T,) codes of the images, or of their features."""
    batch = len(images if images is not None else features)  # type: ignore[arg-type]
    seeds = torch.arange(batch, device=model.device)
    if form != "release":
        model.config.merge = form
        return model.encode(images, features=features, seeds=seeds).ids
    found = model.encode_features(images) if images is not None else features
    assert found is not None
    x = model.positioned(found)
    selection = model.select(found, seeds=seeds)
    merged = release_merger(model.causal_encoder, x, selection)[selection.keep > 0.5]
    rows = merged.to(compute_dtype(merged))  # the release, too, decides ids in float32
    z, codebook = model.quantize.normalize(in_precision(model.encode_task_layer, rows)), model.quantize.codebook()
    distance = z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T
    return distance.argmin(1)
