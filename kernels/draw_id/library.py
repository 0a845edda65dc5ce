"""Registration of ``lavit::draw_id``."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.dispatch import Implementation, register
from lavit.kernels.draw_id import cpp

OPERATION = register(
    "draw_id",
    Implementation("cpp", "one compiled pass, a heap of the likeliest", cpp.unusable),
    Implementation("reference", "plain PyTorch: top-k, sort and cumulative sums"),
)


def compute(scores: Tensor, uniform: Tensor, top_k: int, top_p: float, temperature: float, impl: str) -> Tensor:
    return OPERATION.module(impl, scores).draw_id(scores, uniform, top_k, top_p, temperature)


draw_id_op = torch.library.custom_op("lavit::draw_id", compute, mutates_args=())


@draw_id_op.register_fake
def _(scores: Tensor, uniform: Tensor, top_k: int, top_p: float, temperature: float, impl: str) -> Tensor:
    return scores.new_empty(scores.shape[0], dtype=torch.int64)
