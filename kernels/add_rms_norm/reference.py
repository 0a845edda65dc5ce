"""The definition, by PyTorch's own norm."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x.clone() if delta is None else x + delta
    return total, F.rms_norm(total, (total.shape[-1],), weight, eps)
