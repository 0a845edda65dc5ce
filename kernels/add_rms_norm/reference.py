"""The definition, by PyTorch's own norm, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lavit.kernels.types import compute_dtype


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x.clone() if delta is None else x + delta
    return total, F.rms_norm(total, (total.shape[-1],), weight, eps)


def add_rms_norm_backward(
    total: Tensor, grad_total: Tensor | None, grad_normed: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """With r = 1 / sqrt(mean(s^2) + eps) and y = s r: ds = grad_total + r (w g - y mean(w g y)), dw = sum_i g_i y_i."""
    s, g, w = (x.to(compute_dtype(total)) for x in (total, grad_normed, weight))
    r = torch.rsqrt(s.square().mean(-1, keepdim=True) + eps)
    y, wg = s * r, w * g
    ds = r * (wg - y * (wg * y).mean(-1, keepdim=True))
    if grad_total is not None:
        ds += grad_total
    return ds.to(total.dtype), (g * y).sum(0).to(weight.dtype)
