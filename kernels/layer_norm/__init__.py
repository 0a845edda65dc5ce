"""Layer normalisation: PyTorch's, or apex's fused one where it is installed and measured faster.

Both come with their own autograd and PyTorch's is known to the compiler, so there is no registered op of our own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.checks import check_float, check_shape
from lavit.kernels.dispatch import AUTO, Implementation, register
from lavit.kernels.layer_norm import apex, reference

__all__ = ["layer_norm"]

OPERATION = register(
    "layer_norm",
    Implementation("apex", "NVIDIA apex's fused kernel, for the widths where it is measured faster", apex.unusable),
    Implementation("reference", "PyTorch's own"),
)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, impl: str = AUTO) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension.

    x: (..., C) floating; weight, bias: (C,); eps: at least 0. Returns the shape of x.
    While compiling, PyTorch's is taken, which the compiler fuses with its neighbours.
    """
    check_float("x", x)
    if x.dim() == 0:
        raise ValueError("x: expected shape (..., C), got ()")
    check_shape("weight", weight, x.shape[-1:], "x")
    check_shape("bias", bias, x.shape[-1:], "x")
    if not eps >= 0:
        raise ValueError(f"eps: expected a number of at least 0, got {eps}")
    if impl == AUTO and (x.device.type != "cuda" or torch.compiler.is_compiling()):
        return reference.layer_norm(x, weight, bias, eps)
    chosen = OPERATION.choose(impl, x.device)
    if chosen == "apex" and impl == AUTO:
        capturing = torch.cuda.is_current_stream_capturing()
        if x.dtype != weight.dtype or capturing or not apex.faster(x.shape[-1], x.dtype, x.device):
            chosen = "reference"
    return (apex if chosen == "apex" else reference).layer_norm(x, weight, bias, eps)
