"""The compiled form (csrc/cpu/assemble_sequences.cpp, csrc/cuda/assemble_sequences.cu): every result in one pass."""

from __future__ import annotations

import torch
from torch import Tensor


def assemble_sequences(
    text: Tensor,
    cu_text: Tensor,
    images: Tensor,
    cu_images: Tensor,
    segments: Tensor,
    cu_segments: Tensor,
    loss: Tensor | None,
    *constants: int,
) -> tuple[Tensor, ...]:
    tensors = (text, cu_text, images, cu_images, segments, cu_segments, loss)
    return torch.ops.lavit_cpp.assemble_sequences(*(t if t is None else t.contiguous() for t in tensors), *constants)
