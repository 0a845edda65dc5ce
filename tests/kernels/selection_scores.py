"""Scores for the tests of gumbel_select."""

from __future__ import annotations

import torch
from torch import Tensor


def scores_of(batch: int, patches: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, patches, 2, generator=generator, dtype=torch.float64).to(dtype)
