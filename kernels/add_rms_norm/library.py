"""Registration of ``lavit::add_rms_norm``."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.add_rms_norm import cpp
from lavit.kernels.dispatch import Implementation, register

OPERATION = register(
    "add_rms_norm",
    Implementation("cpp", "sum and norm in one compiled pass", cpp.unusable),
    Implementation("reference", "PyTorch's sum and norm"),
)


def compute(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, impl: str) -> tuple[Tensor, Tensor]:
    x, weight = x.contiguous(), weight.contiguous()
    delta = None if delta is None else delta.contiguous()
    return OPERATION.module(impl, x).add_rms_norm(x, delta, weight, eps)


add_rms_norm_op = torch.library.custom_op("lavit::add_rms_norm", compute, mutates_args=())


@add_rms_norm_op.register_fake
def _(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, impl: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)
