"""A kernel that reads or writes beside its argument, for the test of the fence. Imported where triton is."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kernel(x, load, store, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    unused = tl.load(x + at + load)
    tl.store(x + at + store, at.to(tl.float32) + 0 * tl.where(unused == unused, 0, 0))


def stray(x: Tensor, load: int, store: int) -> None:
    _kernel[(1,)](x, load, store, len(x))
