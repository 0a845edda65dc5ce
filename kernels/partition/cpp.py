"""The compiled form (csrc/cpu/partition.cpp, csrc/cuda/partition.cu): masks to order and offsets in one call."""

from __future__ import annotations

import torch
from torch import Tensor


def partition(keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # The kernels read one byte a patch; a bool mask is that already.
    kept = keep if keep.dtype == torch.bool else keep != 0
    return torch.ops.lavit_cpp.partition(kept.contiguous())
