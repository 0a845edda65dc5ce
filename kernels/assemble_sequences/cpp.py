"""The compiled form (csrc/cpu/assemble_sequences.cpp, csrc/cuda/assemble_sequences.cu): every result in one pass."""

from __future__ import annotations

import torch
from torch import Tensor


def assemble_sequences(*arguments: Tensor | int | None) -> tuple[Tensor, ...]:
    """Arguments and results as in reference.py."""
    return torch.ops.lavit_cpp.assemble_sequences(*(a.contiguous() if isinstance(a, Tensor) else a for a in arguments))
