"""decode_attention beside transformers' way of one token. ``pytest benchmarks/kernels/bench_decode_attention.py``

N sequences with a context of L tokens, float32: the small models' heads, and LLaMA-2's. transformers rotates q and k,
copies the whole cache to append a token, and calls PyTorch's attention. The limit is reading keys and values once.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmarks.timing import measure
from lavit.kernels import decode_attention
from lavit.kernels.dispatch import OPERATIONS

SHAPES = [(2, 4, 32, 96), (16, 4, 32, 96), (2, 32, 128, 512)]  # N, heads, head dim, L


def transformers(qkv: Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, scale: float) -> Tensor:
    """keys and values: (N, H, L - 1, D), of which copies with the new token are made."""
    rows, heads, _, width = keys.shape
    q, k, v = qkv.view(rows, 3, heads, 1, width).unbind(1)
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    keys, values = torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)
    return F.scaled_dot_product_attention(q, keys, values, scale=scale).view(rows, -1)


@pytest.mark.parametrize("form", ["transformers", "reference", "cpp"])
@pytest.mark.parametrize("shape", SHAPES)
def bench_decode_attention(benchmark, device, shape, form):
    if form == "cpp" and (reason := OPERATIONS["decode_attention"].implementations["cpp"].unusable(device.type)):
        pytest.skip(reason)
    torch.manual_seed(0)
    rows, heads, width, length = shape
    qkv = torch.randn(rows, 3 * heads * width, device=device)
    keys, values = torch.randn(2, rows, heads, length, width, device=device).unbind()
    mask, slot = torch.zeros(rows, 1, 1, length, device=device), torch.tensor([length - 1], device=device)
    angle = torch.randn(rows, 1, width // 2, device=device).repeat(1, 1, 2)
    cos, sin = angle.cos(), angle.sin()
    signed = torch.cat((-sin[..., : width // 2], sin[..., width // 2 :]), dim=-1)
    before = (keys[:, :, :-1].clone(), values[:, :, :-1].clone())
    scale = width**-0.5

    def run() -> Tensor:
        if form == "transformers":
            return transformers(qkv, *before, cos, sin, scale)
        return decode_attention(
            qkv, keys, values, mask, cos, signed, slot, window=length, scale=scale, impl=form
        )

    # Of scores and weighted sums of order 1, in another order.
    torch.testing.assert_close(run(), transformers(qkv, *before, cos, sin, scale), rtol=1e-4, atol=1e-5)
    moved = 4 * 2 * keys.numel()
    group = f"decode attention N={rows} H={heads} D={width} L={length}"
    name = form if form == "transformers" else f"lavit {form}"
    measure(benchmark, device, group, run, implementation=name, baseline=form == "transformers", bytes_moved=moved)
