"""swiglu beside PyTorch's SiLU and product. ``pytest benchmarks/kernels/bench_swiglu.py``

1024 rows of training, forward and backward, float32.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import measure
from lavit.kernels import swiglu
from lavit.kernels.dispatch import OPERATIONS


@pytest.mark.parametrize("form", ["torch", "reference", "cpp"])
@pytest.mark.parametrize("shape", [(1024, 344), (1024, 2752)])
def bench_swiglu(benchmark, device, shape, form):
    if form == "cpp" and (reason := OPERATIONS["swiglu"].implementations["cpp"].unusable(device.type)):
        pytest.skip(reason)
    torch.manual_seed(0)
    gate, up, grad = torch.randn(3, *shape, device=device).unbind()
    leaves = gate.requires_grad_(), up.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        out = F.silu(gate) * up if form == "torch" else swiglu(gate, up, impl=form)
        return out, *torch.autograd.grad(out, leaves, grad)

    exact = F.silu(gate.double()) * up.double()
    wanted = exact, *torch.autograd.grad(exact, leaves, grad.double())
    for found, expected in zip(run(), wanted, strict=True):
        torch.testing.assert_close(found.double(), expected.double(), rtol=2**-20, atol=2**-20)
    # Both are read twice and the gradient once; the output and two gradients are written.
    moved = 4 * 8 * gate.numel()
    name = "lavit cpp" if form == "cpp" else form
    options = {"implementation": name, "baseline": form == "torch", "bytes_moved": moved}
    measure(benchmark, device, f"SwiGLU with gradient {shape}", run, **options)
