"""Registration of lavit::code_statistics. No gradient: the statistics feed a moving average."""

from __future__ import annotations

import torch

from lavit.kernels.checks import verify_range
from lavit.kernels.code_statistics import cpp
from lavit.kernels.dispatch import Implementation, register
from lavit.kernels.triton_support import triton_unusable
from lavit.kernels.types import compute_dtype


def _not_cpu(device_type: str) -> str | None:
    return None if device_type == "cpu" else "its sums have a fixed order on the CPU only"


OPERATION = register(
    "code_statistics",
    Implementation("triton", "a sort, then a program for each code", triton_unusable),
    Implementation("cpp", "rows added where they belong, a thread's codes at a time", cpp.unusable),
    Implementation("cpu", "rows added where they belong", _not_cpu),
    Implementation("reference", "sort and segment sums in PyTorch"),
    preference={"cuda": ("triton", "reference"), "cpu": ("cpp", "cpu", "reference")},
)


@torch.library.custom_op(
    "lavit::code_statistics",
    mutates_args=(),
    schema="(Tensor x, Tensor ids, SymInt num_codes, str impl) -> (Tensor, Tensor)",
)
def code_statistics_op(x, ids, num_codes, impl):
    verify_range("ids", ids, -1, num_codes - 1)
    return OPERATION.module(impl, x).code_statistics(x, ids, num_codes)


@code_statistics_op.register_fake
def _(x, ids, num_codes, impl):
    dtype = compute_dtype(x)
    return x.new_empty((num_codes,), dtype=dtype), x.new_empty((num_codes, x.shape[1]), dtype=dtype)
