"""The compiled form (csrc/cpu/draw_id.cpp): a heap of the likeliest and sums over these, in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.extension import cpu_operator_unusable


def unusable(device_type: str) -> str | None:
    return cpu_operator_unusable("draw_id", device_type)


def draw_id(scores: Tensor, uniform: Tensor, top_k: int, top_p: float, temperature: float) -> Tensor:
    return torch.ops.lavit_cpp.draw_id(scores.contiguous(), uniform.contiguous(), top_k, top_p, temperature)
