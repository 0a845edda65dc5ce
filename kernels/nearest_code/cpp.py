"""The compiled form (csrc/cpu/nearest_code.cpp): product and running maximum in registers, memory O(n + K D)."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.extension import cpp_unusable
from lavit.kernels.nearest_code.reference import finish, prepare

VECTOR_BYTES = 0  # of the vectors to compute with: 16, 32 or 64; 0 for the widest that the machine has


def unusable(device_type: str) -> str | None:
    return cpp_unusable(device_type) if device_type == "cpu" else "compiled for the CPU only"


def nearest_code(x: Tensor, codebook: Tensor, metric: str, normalize_x: bool, precision: str) -> tuple[Tensor, Tensor]:
    """ids (n,) and score (n,), as in reference.py."""
    usable = x.isfinite().all(dim=1)
    x, c, b = prepare(x, codebook, metric, normalize_x)
    x = x.contiguous()
    ids, best = torch.ops.lavit_cpp.nearest_code(x, c.contiguous(), b.contiguous(), VECTOR_BYTES)
    return finish(x, best, ids, usable, metric)
