"""Registration of ``lavit::decode_attention``, which writes to the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.decode_attention import cpp
from lavit.kernels.dispatch import Implementation, register

OPERATION = register(
    "decode_attention",
    Implementation("cpp", "rotation, write and attention in one compiled pass", cpp.unusable),
    Implementation("reference", "PyTorch's attention over the cache"),
)


def compute(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    cos: Tensor,
    sin: Tensor,
    slot: Tensor,
    window: int,
    scale: float,
    impl: str,
) -> Tensor:
    module = OPERATION.module(impl, qkv)
    others = (x.contiguous() for x in (mask, cos, sin))
    return module.decode_attention(qkv.contiguous(), keys, values, *others, slot, window, scale)


decode_attention_op = torch.library.custom_op(
    "lavit::decode_attention", compute, mutates_args=("keys", "values")
)


@decode_attention_op.register_fake
def _(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    cos: Tensor,
    sin: Tensor,
    slot: Tensor,
    window: int,
    scale: float,
    impl: str,
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] - 2 * keys.shape[1] * keys.shape[3])
