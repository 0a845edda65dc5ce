"""The compiled form (csrc/cpu/swiglu.cpp): one pass forward and one backward, for float32."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.extension import cpu_operator_unusable

VECTOR_BYTES = 0  # of the vectors to compute with: 16, 32 or 64; 0 for the widest that the machine has


def unusable(device_type: str) -> str | None:
    return cpu_operator_unusable("swiglu", device_type)


def can_take(gate: Tensor) -> bool:
    return gate.dtype == torch.float32


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return torch.ops.lavit_cpp.swiglu.default(gate.contiguous(), up.contiguous(), VECTOR_BYTES)


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    tensors = grad.contiguous(), gate.contiguous(), up.contiguous()
    return torch.ops.lavit_cpp.swiglu_backward.default(*tensors, VECTOR_BYTES)
