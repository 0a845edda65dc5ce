"""The CPU's form: rows added where they belong, in their order."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.types import compute_dtype


def code_statistics(x: Tensor, ids: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """As the reference. On the CPU index_add_ is sequential within a code; one more code takes the ignored rows."""
    dtype = compute_dtype(x)
    codes = torch.where(ids < 0, num_codes, ids)
    sums = x.new_zeros((num_codes + 1, x.shape[1]), dtype=dtype).index_add_(0, codes, x.to(dtype))
    counts = torch.bincount(codes, minlength=num_codes + 1)
    return counts[:num_codes].to(dtype), sums[:num_codes]
