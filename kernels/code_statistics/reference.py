"""How often each code was used and the sum of the vectors that used it: sorted by code, then summed code by code."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.types import compute_dtype


def code_statistics(x: Tensor, ids: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """counts (K,), sums (K, D). Within a code the rows are added in their order: the same bits every run."""
    dtype = compute_dtype(x)
    sorted_ids, order = ids.sort(stable=True)
    codes = torch.arange(num_codes + 1, device=ids.device)
    offsets = torch.searchsorted(sorted_ids, codes)
    sums = torch.segment_reduce(x[order].to(dtype), "sum", offsets=offsets, unsafe=True, initial=0)
    return offsets.diff().to(dtype), sums
