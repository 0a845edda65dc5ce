"""The definition, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def decode_attention(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    cos: Tensor,
    sin: Tensor,
    slot: Tensor,
    window: int,
    scale: float,
) -> Tensor:
    rows, key_heads, _, width = keys.shape
    qkv = qkv.reshape(rows, -1, width)
    q_and_k, v = qkv[:, :-key_heads], qkv[:, -key_heads:, None]
    q_and_k = torch.addcmul(q_and_k * cos, q_and_k.roll(width // 2, dims=-1), sin)
    keys.index_copy_(2, slot, q_and_k[:, -key_heads:, None].type_as(keys))
    values.index_copy_(2, slot, v.type_as(values))  # autocast can make them differ
    # Heads that share keys stand as queries side by side: nothing is repeated.
    read = F.scaled_dot_product_attention(
        q_and_k[:, :-key_heads].unflatten(1, (key_heads, -1)),
        keys.narrow(2, 0, window),
        values.narrow(2, 0, window),
        attn_mask=mask.narrow(3, 0, window),
        scale=scale,
    )
    return read.reshape(rows, -1)
