"""The compiled form (csrc/cpu/gumbel_select.cpp): an image's noise, decisions, probabilities and order in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.extension import cpu_operator_unusable
from lavit.kernels.gumbel_select import reference
from lavit.kernels.types import compute_dtype

VECTOR_BYTES = 0  # of the vectors to compute with: 16, 32 or 64; 0 for the widest that the machine has


def unusable(device_type: str) -> str | None:
    return cpu_operator_unusable("gumbel_select", device_type)


def gumbel_select(
    scores: Tensor, noise: Tensor | None, seeds: Tensor | None, tau: float, min_keep: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the reference, which is asked where a margin is so near to a tie that its own logarithms must decide."""
    dtype = compute_dtype(scores)
    rows = scores.to(dtype).contiguous()
    given, numbers = noise, seeds
    if given is not None:
        given = given.to(dtype).contiguous()
    if numbers is not None:
        numbers = numbers.contiguous()
    *selection, certain = torch.ops.lavit_cpp.gumbel_select(rows, given, numbers, tau, min_keep, VECTOR_BYTES)
    if not certain:
        return reference.gumbel_select(scores, noise, seeds, tau, min_keep)
    return tuple(selection)


def gumbel_select_backward(
    grad_keep: Tensor | None, grad_prob: Tensor | None, prob: Tensor, tau: float, dtype: torch.dtype
) -> Tensor:
    return torch.ops.lavit_cpp.gumbel_select_backward(grad_keep, grad_prob, prob.contiguous(), tau).to(dtype)
