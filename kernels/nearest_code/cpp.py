"""The compiled form (csrc/cpu/nearest_code.cpp): product and running maximum in registers, memory O(n + K D)."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.extension import cpp_unusable
from lavit.kernels.nearest_code.ranges import search_in_range

VECTOR_BYTES = 0  # of the vectors to compute with: 16, 32 or 64; 0 for the widest that the machine has


def unusable(device_type: str) -> str | None:
    if device_type != "cpu":
        return "compiled for the CPU only"
    if (reason := cpp_unusable(device_type)) is not None:
        return reason
    if not torch._C._dispatch_has_kernel_for_dispatch_key("lavit_cpp::nearest_code", "CPU"):
        return "lavit._C is of an earlier version, install again (`pip install -e .`)"
    return None


def nearest_code(x: Tensor, codebook: Tensor, metric: str, normalize_x: bool, precision: str) -> tuple[Tensor, Tensor]:
    """ids (n,) and score (n,), as in reference.py."""

    def search(x: Tensor, c: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.lavit_cpp.nearest_code(x, c, b, VECTOR_BYTES)

    return search_in_range(search, x, codebook, metric, normalize_x)
