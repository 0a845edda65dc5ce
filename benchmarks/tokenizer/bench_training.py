"""A step of stage 1, forward and backward from features to the gradients of selector, merger, quantizer and decoder.

``pytest benchmarks/tokenizer/bench_training.py``. On a CPU the small preset; on a GPU the paper's model with float32
parameters under bfloat16 autocast, as it is trained. The frozen encoder is left out: its features are given.

"PyTorch" is the definition of every operation, differentiated by autograd, with all N rows in the merger; "dense" and
"packed" are this library's two forms of the merger, and "exact" is packed with the selector's whole gradient, which
costs all N rows. The three credit the selector with less or more (`selector_gradient`), so that its gradients differ.

Parity: the gradients of four parts without quantisation, in which no code can flip, beside those of the definitions in
the next precision up. The largest error may be twice that of "PyTorch" in the same precision, and one rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from benchmarks.timing import measure
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig
from lavit.training.tokenizer.objective import Step, parameter_groups

FORMS = ("PyTorch", "dense", "packed", "exact")
WATCHED = ("token_predictor.in_conv.1", "causal_encoder.blocks.0.mlp.fc1", "encode_task_layer.2", "decoder.in_proj")


@dataclass(frozen=True)
class Case:
    preset: str
    device: str
    batch: int
    autocast: bool


CASES = (Case("small", "cpu", 64, False), Case("lavit-g", "cuda", 32, True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.preset)
def bench_training(benchmark, device, case, form):
    if case.device != device.type:
        pytest.skip(f"{case.preset}: measured on {case.device}")
    errors = errors_of(case, form)
    rounding = torch.finfo(torch.bfloat16 if case.autocast else torch.float32).eps
    allowed = 2 * max(errors_of(case, "PyTorch").values()) + rounding
    model, batch = setting(case)
    step = Step(model)

    def run() -> None:
        with using(model, form), torch.autocast(case.device, torch.bfloat16, enabled=case.autocast):
            out = step(batch, quantize=True, tau=1.0, noise_scale=1.0, warm_start=None)
            out["loss"].backward()
        model.zero_grad(set_to_none=True)

    measure(
        benchmark,
        device,
        f"stage-1 step, {case.preset}, B={case.batch}",
        run,
        implementation=form,
        baseline=form == "PyTorch",
        passed=max(errors.values()) <= allowed,
        parity={**errors, "allowed": allowed},
        samples=case.batch,
    )


@contextmanager
def using(model: LaVITTokenizer, form: str, defined: bool = False) -> Iterator[None]:
    """The model in one of the forms. defined: by the definitions of all operations."""
    model.config.merge = "dense" if form in ("PyTorch", "dense") else "packed"
    model.config.selector_gradient = "exact" if form == "exact" else "packed"
    with pytest.MonkeyPatch.context() as patch:
        if defined or form == "PyTorch":
            patch.setenv("LAVIT_KERNELS", "reference")
        yield


@cache
def setting(case: Case) -> tuple[LaVITTokenizer, dict[str, Tensor]]:
    torch.manual_seed(0)
    config = LaVITTokenizerConfig.preset(case.preset, encoder_depth=1)
    with torch.device(case.device):
        model = LaVITTokenizer(config).train()
        features = torch.randn(case.batch, config.num_patches, config.hidden_size)
        seeds = torch.arange(case.batch)
        latents = model.latents(features=features, deterministic=True).values.detach()
        model.quantize.initialize(latents)
    with torch.no_grad():  # about a third is kept
        model.token_predictor.out_conv[-1].bias.copy_(torch.tensor([0.5, 1.0]).log())
    parameter_groups(model, 0.0)  # freezes what stage 1 does not train
    return model, {"features": features, "seeds": seeds}


def gradients(
    model: LaVITTokenizer, batch: dict[str, Tensor], form: str, autocast: bool = False, defined: bool = False
) -> list[Tensor]:
    with using(model, form, defined), torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
        Step(model)(batch, quantize=False, tau=1.0, noise_scale=1.0, warm_start=None)["loss"].backward()
    found = [model.get_parameter(f"{name}.weight").grad for name in WATCHED]
    model.zero_grad(set_to_none=True)
    assert all(gradient is not None for gradient in found)
    return found  # type: ignore[return-value]


@cache
def exact(case: Case, form: str) -> list[Tensor]:
    model, batch = setting(case)
    dtype = torch.float32 if case.autocast else torch.float64
    larger = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
    return gradients(copy.deepcopy(model).to(dtype), larger, form, defined=True)  # type: ignore[arg-type]


@cache
def errors_of(case: Case, form: str) -> dict[str, float]:
    model, batch = setting(case)
    found = gradients(model, batch, form, case.autocast)
    truth = exact(case, "dense" if form == "PyTorch" else form)
    return {
        name: float((a.to(b.dtype) - b).norm() / b.norm()) for name, a, b in zip(WATCHED, found, truth, strict=True)
    }
