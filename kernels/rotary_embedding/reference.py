"""The definition, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """x cos + turned(x) sin with turned(a, b) = (-b, a); ``back``: the transposed, x cos - turned(x sin)."""
    cos, sin = cos[:, None], sin[:, None]
    return x * cos - _turned(x * sin) if back else x * cos + _turned(x) * sin


def _turned(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)
