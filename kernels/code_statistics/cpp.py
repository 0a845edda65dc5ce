"""The compiled form (csrc/cpu/code_statistics.cpp): rows added where they belong, each thread for its codes."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.extension import cpu_operator_unusable
from lavit.kernels.types import compute_dtype


def unusable(device_type: str) -> str | None:
    return cpu_operator_unusable("code_statistics", device_type)


def code_statistics(x: Tensor, ids: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """As the reference; the same bits on any number of threads."""
    return torch.ops.lavit_cpp.code_statistics(x.to(compute_dtype(x)).contiguous(), ids.contiguous(), num_codes)
