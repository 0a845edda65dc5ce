"""The compiled form (csrc/cpu/nearest_code.cpp): product and running maximum in registers, memory O(n + K D)."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.extension import cpu_operator_unusable
from lavit.kernels.nearest_code.ranges import search_in_range

VECTOR_BYTES = 0  # of the vectors to compute with: 16, 32 or 64; 0 for the widest that the machine has


def unusable(device_type: str) -> str | None:
    return cpu_operator_unusable("nearest_code", device_type)


def nearest_code(x: Tensor, codebook: Tensor, metric: str, normalize_x: bool, precision: str) -> tuple[Tensor, Tensor]:
    """ids (n,) and score (n,), as in reference.py."""

    def search(x: Tensor, c: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.lavit_cpp.nearest_code(x, c, b, VECTOR_BYTES)

    return search_in_range(search, x, codebook, metric, normalize_x)
