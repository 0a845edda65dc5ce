"""A kernel around a helper of gumbel_select's, so that it can be tested alone. Imported where triton is."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lavit.kernels.gumbel_select.triton import _most_probable


@triton.jit(do_not_specialize=["inside", "wanted"])
def _kernel(margin, out, inside, wanted, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, _most_probable(tl.load(margin + at), at < inside, wanted).to(tl.int32))


def most_probable(margin: Tensor, inside: int, wanted: int) -> Tensor:
    """Which of the first ``inside`` of margin (a power of two,) float64 are the ``wanted`` largest: bool."""
    out = torch.zeros(len(margin), dtype=torch.int32, device=margin.device)
    _kernel[(1,)](margin, out, inside, wanted, len(margin))
    return out.bool()
