"""Registration of lavit::nearest_code. No gradient: ids have none, and the quantizer's is straight-through."""

from __future__ import annotations

import torch

from lavit.kernels.dispatch import Implementation, register, without_autocast
from lavit.kernels.nearest_code import cpp
from lavit.kernels.triton_support import triton_unusable


def _not_cpu(device_type: str) -> str | None:
    return None if device_type == "cpu" else "made for the CPU's caches"


OPERATION = register(
    "nearest_code",
    Implementation("triton", "tensor cores, a proven bound and an exact rescoring", triton_unusable),
    Implementation("cpp", "product and running maximum in registers", cpp.unusable),
    Implementation("cpu", "tiles that stay in the cache, bounded memory", _not_cpu),
    Implementation("reference", "the whole matrix of scores in PyTorch"),
    preference={"cpu": ("cpp", "cpu", "reference")},
)


@torch.library.custom_op(
    "lavit::nearest_code",
    mutates_args=(),
    schema="(Tensor x, Tensor codebook, str metric, bool normalize_x, str precision, str impl) -> (Tensor, Tensor)",
)
@without_autocast
def nearest_code_op(x, codebook, metric, normalize_x, precision, impl):
    return OPERATION.module(impl, x).nearest_code(x, codebook, metric, normalize_x, precision)


@nearest_code_op.register_fake
def _(x, codebook, metric, normalize_x, precision, impl):
    return x.new_empty(x.shape[:1], dtype=torch.int64), x.new_empty(x.shape[:1], dtype=torch.float32)
