"""Layers that several parts of the tokenizer have: LayerNorm over the library's operation, and attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.kernels import layer_norm


class LayerNorm(nn.LayerNorm):
    """torch.nn.LayerNorm over the last dimension, parameters and all, computed by :func:`lavit.kernels.layer_norm`."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.weight, self.bias, self.eps)


def self_attention(qkv: Tensor, heads: int) -> Tensor:
    """Of all rows to all: queries, keys and values side by side (B, N, 3 C) -> (B, N, C)."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Attention of some rows to others."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        origin: Tensor,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
        whole: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """x (..., C) reads origin (..., C). attend: of queries, keys and values (..., H, D), who sees whom.

        whole: (B, C) rows, (T,) image ids and (T, 1) bool: where x is to get the value of its image's row instead.
        """
        q, k, v = (
            rows.unflatten(-1, (self.heads, -1)) for rows in (self.query(x), self.key(origin), self.value(origin))
        )
        out = attend(q, k, v).flatten(-2)
        if whole is not None:
            rows, image, instead = whole
            out = torch.where(instead, self.value(rows).to(out.dtype)[image], out)
        return self.proj(out)
