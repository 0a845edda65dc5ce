"""The compiled form (csrc/cpu/int8_rows.cpp): a row is read once, and all of it done in the first-level cache."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.extension import cpu_operator_unusable


def unusable(device_type: str) -> str | None:
    return cpu_operator_unusable("quantize_rows", device_type)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.lavit_cpp.quantize_rows(x.contiguous())


def scale_products(
    products: Tensor, rows: Tensor, columns: Tensor, bias: Tensor, dtype: torch.dtype, residual: Tensor | None
) -> Tensor:
    like = products.new_empty(0, dtype=dtype) if residual is None else residual.contiguous()
    return torch.ops.lavit_cpp.scale_products(products, rows, columns, bias, like, residual is not None)


def gelu_products(products: Tensor, rows: Tensor, columns: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.lavit_cpp.gelu_products(products, rows, columns, bias)
