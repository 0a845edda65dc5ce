"""The compiled form (csrc/cpu/int8_rows.cpp): a row is read once, and all of it done in the first-level cache."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.extension import cpp_unusable


def unusable(device_type: str) -> str | None:
    if device_type != "cpu":
        return "compiled for the CPU only"
    if (reason := cpp_unusable(device_type)) is not None:
        return reason
    if not torch._C._dispatch_has_kernel_for_dispatch_key("lavit_cpp::quantize_rows", "CPU"):
        return "lavit._C is of an earlier version, install again (`pip install -e .`)"
    return None


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.lavit_cpp.quantize_rows(x.contiguous())


def scale_products(
    products: Tensor, rows: Tensor, columns: Tensor, bias: Tensor, dtype: torch.dtype, residual: Tensor | None
) -> Tensor:
    like = products.new_empty(0, dtype=dtype) if residual is None else residual.contiguous()
    return torch.ops.lavit_cpp.scale_products(products, rows, columns, bias, like, residual is not None)


def gelu_products(products: Tensor, rows: Tensor, columns: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.lavit_cpp.gelu_products(products, rows, columns, bias)
