"""The definition, in plain PyTorch, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lavit.kernels.types import compute_dtype


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """With s = 1 / (1 + e^-g): dg = grad u s (1 + g (1 - s)), by PyTorch's own, and du = grad g s."""
    d, g, u = (x.to(compute_dtype(gate)) for x in (grad, gate, up))
    return torch.ops.aten.silu_backward(d * u, g).to(gate.dtype), (d * F.silu(g)).to(up.dtype)
