"""rotary_embedding beside transformers' formula. ``pytest benchmarks/kernels/bench_rotary_embedding.py``

1024 rows of training, forward and backward, float32.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import rotate_half

from benchmarks.timing import measure
from lavit.kernels import rotary_embedding
from lavit.kernels.dispatch import OPERATIONS


@pytest.mark.parametrize("form", ["transformers", "reference", "cpp"])
@pytest.mark.parametrize("shape", [(1024, 4, 32), (1024, 16, 64)])
def bench_rotary_embedding(benchmark, device, shape, form):
    if form == "cpp" and (reason := OPERATIONS["rotary_embedding"].implementations["cpp"].unusable(device.type)):
        pytest.skip(reason)
    torch.manual_seed(0)
    x, grad = torch.randn(2, *shape, device=device).unbind()
    angles = torch.rand(shape[0], shape[2] // 2, device=device).repeat(1, 2) * torch.pi
    cos, sin = angles.cos(), angles.sin()
    x.requires_grad_()

    def theirs() -> Tensor:
        return x * cos[:, None] + rotate_half(x) * sin[:, None]

    def run() -> tuple[Tensor, ...]:
        out = theirs() if form == "transformers" else rotary_embedding(x, cos, sin, impl=form)
        return out, *torch.autograd.grad(out, x, grad)

    wanted = theirs()
    for found, expected in zip(run(), (wanted, *torch.autograd.grad(wanted, x, grad)), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2**-20)  # of numbers up to 8
    # Read and written in either direction; cos and sin are as small as there are heads.
    moved = 4 * 4 * x.numel()
    name = "lavit cpp" if form == "cpp" else form
    options = {"implementation": name, "baseline": form == "transformers", "bytes_moved": moved}
    measure(benchmark, device, f"rotary embedding with gradient {shape}", run, **options)
