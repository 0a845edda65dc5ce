"""Registration of ``lavit::partition``. Indices carry no gradient.

Not by ``torch.library.custom_op``, whose layer for gradients would take a fifth of the time of a small batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.dispatch import Implementation, register
from lavit.kernels.extension import cpp_unusable

OPERATION = register(
    "partition",
    Implementation("cpp", "one compiled pass over the mask", cpp_unusable),
    Implementation("reference", "plain PyTorch: sort and running sums"),
)


torch.library.define("lavit::partition", "(Tensor keep, str impl) -> (Tensor, Tensor, Tensor)")


@torch.library.impl("lavit::partition", "CompositeExplicitAutograd")
def _(keep: Tensor, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    return OPERATION.module(impl, keep).partition(keep)


@torch.library.register_fake("lavit::partition")
def _(keep: Tensor, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    batch, patches = keep.shape
    order, cu = keep.new_empty((batch, patches), dtype=torch.int32), keep.new_empty((batch + 1,), dtype=torch.int32)
    return order, cu, torch.empty_like(cu)


partition_op = torch.ops.lavit.partition.default
