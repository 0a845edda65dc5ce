"""Layers that several parts of the tokenizer have: LayerNorm over the library's operation, and attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values (..., H, D) -> (..., H, D), as who sees whom decides."""


def to_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, N, H, D): every row sees all of its image."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def self_attention(qkv: Tensor, heads: int, attend: Attend = to_all) -> Tensor:
    """Queries, keys and values side by side (..., 3 C) -> (..., C)."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(-3)
    return attend(q, k, v).flatten(-2)


class SelfAttention(nn.Module):
    """Attention of rows to each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, attend: Attend = to_all) -> Tensor:
        return self.proj(self_attention(self.qkv(x), self.heads, attend))


def cross_attention(
    layers: Any, heads: int, x: Tensor, origin: Tensor, attend: Attend, whole: tuple[Tensor, Tensor, Tensor] | None
) -> Tensor:
    """:class:`CrossAttention` with the layers query, key, value and proj of any module."""
    q, k, v = (rows.unflatten(-1, (heads, -1)) for rows in (layers.query(x), layers.key(origin), layers.value(origin)))
    out = attend(q, k, v).flatten(-2)
    if whole is not None:
        rows, image, instead = whole
        out = torch.where(instead, layers.value(rows).to(out.dtype)[image], out)
    return layers.proj(out)


class CrossAttention(nn.Module):
    """Attention of rows to those of another tensor, in the merger the kept patches' to the dropped ones."""

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
        attend: Attend,
        whole: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """x (..., C) reads origin (..., C).

        whole: (B, C) rows, (T,) image ids and (T, 1) bool: where x is to get the value of its image's row instead.
        """
        return cross_attention(self, self.heads, x, origin, attend, whole)
