"""The language model's loss with its gradients, and what it holds at most: all logits beside the chunked forms.

``pytest benchmarks/language/bench_loss.py``. On a CPU the small preset's width and a wider head; on a GPU LLaMA-2-7B's
width and the released vocabulary in bfloat16. "all logits" is ``F.cross_entropy`` of ``F.linear``, as in transformers.
The limit of memory is the gradients themselves: those of the hidden states and of the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import measure
from lavit.language.loss import OPERATION, linear_cross_entropy


@dataclass(frozen=True)
class Case:
    device: str
    rows: int
    width: int
    size: int
    dtype: torch.dtype


CASES = (
    Case("cpu", 4096, 128, 562, torch.float32),
    Case("cpu", 1024, 256, 16642, torch.float32),
    Case("cuda", 8192, 4096, 48386, torch.bfloat16),
)
PLAIN = "all logits"
# Of the gradients beside those in float64: rounding of products and sums, and of the result.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-6}


@pytest.mark.parametrize("impl", [PLAIN, "torch", "liger", "chunked"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.rows}x{c.width}x{c.size}")
def bench_loss(benchmark, device, case, impl):
    if case.device != device.type:
        pytest.skip(f"measured on {case.device}")
    if impl != PLAIN and (reason := OPERATION.implementations[impl].unusable(device.type)):
        pytest.skip(reason)
    generator = torch.Generator(device).manual_seed(0)
    hidden, weight = (
        torch.randn(n, case.width, generator=generator, device=device).mul_(case.width**-0.25).to(case.dtype)
        for n in (case.rows, case.size)
    )
    labels = torch.randint(case.size, (case.rows,), generator=generator, device=device)
    labels[::3] = -100
    hidden.requires_grad_(True)
    weight.requires_grad_(True)

    def run() -> tuple[Tensor, ...]:
        if impl == PLAIN:
            loss = F.cross_entropy(F.linear(hidden, weight).float(), labels)
        else:
            loss = linear_cross_entropy(hidden, weight, labels, impl=impl).mean
        return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))

    exact = exact_gradients(hidden.detach(), weight.detach(), labels)
    errors = {
        name: float((got.double() - right).norm() / right.norm())
        for name, got, right in zip(("hidden", "weight"), run()[1:], exact, strict=True)
    }
    measure(
        benchmark,
        device,
        f"loss with gradients, T={case.rows} H={case.width} V={case.size}, {str(case.dtype).removeprefix('torch.')}",
        run,
        implementation=impl if impl == PLAIN else f"lavit {impl}",
        baseline=impl == PLAIN,
        passed=max(errors.values()) <= ROUNDING[case.dtype],
        parity=errors,
        operations=6 * case.rows * case.width * case.size,
        logits_bytes=case.rows * case.size * case.dtype.itemsize,
        gradient_bytes=(case.rows + case.size) * case.width * case.dtype.itemsize,
    )


def exact_gradients(hidden: Tensor, weight: Tensor, labels: Tensor, rows: int = 512) -> tuple[Tensor, Tensor]:
    """By the formula, in float64, some rows at a time."""
    x, w = hidden.double(), weight.double()
    counts = labels != -100
    of_hidden, of_weight = torch.empty_like(x), torch.zeros_like(w)
    for at in torch.arange(x.shape[0], device=x.device).split(rows):
        share = (x[at] @ w.T).softmax(dim=1)
        share[torch.arange(at.shape[0], device=x.device), labels[at].clamp(min=0)] -= 1
        share *= counts[at, None]
        of_hidden[at] = share @ w
        of_weight += share.T @ x[at]
    return of_hidden / counts.sum(), of_weight / counts.sum()
