"""Registration of ``lavit::partition``. Indices carry no gradient."""

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


@torch.library.custom_op("lavit::partition", mutates_args=())
def partition_op(keep: Tensor, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    return OPERATION.module(impl, keep).partition(keep)


@partition_op.register_fake
def _(keep: Tensor, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    batch, patches = keep.shape
    order, cu = keep.new_empty((batch, patches), dtype=torch.int32), keep.new_empty((batch + 1,), dtype=torch.int32)
    return order, cu, torch.empty_like(cu)
