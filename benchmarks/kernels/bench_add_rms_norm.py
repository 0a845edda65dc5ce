"""add_rms_norm beside a sum and a norm. ``pytest benchmarks/kernels/bench_add_rms_norm.py``

Rows of one token, and 1024 rows of training with their gradient; float32. PyTorch's norm is seven calls on a CPU,
transformers' own six.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from benchmarks.timing import measure
from lavit.kernels import add_rms_norm
from lavit.kernels.dispatch import OPERATIONS


@pytest.mark.parametrize("form", ["transformers", "torch", "cpp"])
@pytest.mark.parametrize("shape", [(2, 128), (16, 128), (2, 4096)])
def bench_add_rms_norm(benchmark, device, shape, form):
    if form == "cpp" and (reason := OPERATIONS["add_rms_norm"].implementations["cpp"].unusable(device.type)):
        pytest.skip(reason)
    torch.manual_seed(0)
    x, delta = torch.randn(2, *shape, device=device).unbind()
    norm = LlamaRMSNorm(shape[1]).to(device).requires_grad_(False)

    def run() -> tuple[Tensor, Tensor]:
        if form == "cpp":
            return add_rms_norm(x, delta, norm.weight, norm.variance_epsilon, impl="cpp")
        total = x + delta
        if form == "torch":
            return total, F.rms_norm(total, total.shape[-1:], norm.weight, norm.variance_epsilon)
        return total, norm(total)

    # Sums of squares of order 1, whose error the root halves.
    torch.testing.assert_close(run()[1], norm(x + delta), rtol=1e-5, atol=1e-6)
    group, name = f"sum and RMS norm {shape}", "lavit cpp" if form == "cpp" else form
    moved = 4 * 4 * x.numel()
    measure(benchmark, device, group, run, implementation=name, baseline=form == "transformers", bytes_moved=moved)


@pytest.mark.parametrize("form", ["transformers", "reference", "cpp"])
@pytest.mark.parametrize("shape", [(1024, 128), (1024, 1024)])
def bench_add_rms_norm_with_gradient(benchmark, device, shape, form):
    if form == "cpp" and (reason := OPERATIONS["add_rms_norm"].implementations["cpp"].unusable(device.type)):
        pytest.skip(reason)
    torch.manual_seed(0)
    x, delta, *grads = torch.randn(4, *shape, device=device).unbind()
    norm = LlamaRMSNorm(shape[1]).to(device)
    leaves = x.requires_grad_(), delta.requires_grad_(), norm.weight

    def theirs() -> tuple[Tensor, ...]:
        total = x + delta
        return torch.autograd.grad((total, norm(total)), leaves, grads)

    def run() -> tuple[Tensor, ...]:
        if form == "transformers":
            return theirs()
        results = add_rms_norm(x, delta, norm.weight, norm.variance_epsilon, impl=form)
        return torch.autograd.grad(results, leaves, grads)

    # Sums of a row's or a column's products of order 1.
    for found, expected in zip(run(), theirs(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=max(shape) * 2**-23)
    # x, delta, the sum and two gradients are read, the sum, its norm and a gradient written.
    moved = 4 * 8 * x.numel()
    name = "lavit cpp" if form == "cpp" else form
    measure(
        benchmark,
        device,
        f"sum and RMS norm with gradient {shape}",
        run,
        implementation=name,
        baseline=form == "transformers",
        bytes_moved=moved,
    )
