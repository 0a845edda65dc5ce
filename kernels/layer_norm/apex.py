"""NVIDIA apex's fused layer normalisation, where it is installed and measured faster than PyTorch's."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lavit.kernels.layer_norm import reference

ROWS, REPEATS = 16384, 20


def unusable(device_type: str) -> str | None:
    if device_type != "cuda":
        return "apex's layer norm runs on CUDA only"
    if importlib.util.find_spec("apex") is None or importlib.util.find_spec("apex.normalization") is None:
        return "apex.normalization is not installed"
    return None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    return fused_layer_norm_affine(x, weight, bias, weight.shape, eps)


def _milliseconds(forward: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Median time of forward and backward, after a warm-up."""
    times = []
    for i in range(REPEATS + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        forward(x, weight, bias, 1e-6).sum().backward()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


@cache
def faster(width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether apex beats PyTorch for rows of this width. Measured once, waiting for the device: not in a capture."""
    with torch.enable_grad(), torch.cuda.device(device):
        x = torch.randn(ROWS, width, dtype=dtype, device=device, requires_grad=True)
        weight = torch.ones(width, dtype=dtype, device=device, requires_grad=True)
        bias = torch.zeros(width, dtype=dtype, device=device, requires_grad=True)
        return _milliseconds(layer_norm, x, weight, bias) < _milliseconds(reference.layer_norm, x, weight, bias)
