"""Registration of ``lavit::quantize_rows``, ``lavit::scale_products`` and ``lavit::gelu_products``."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.dispatch import Implementation, register
from lavit.kernels.int8_rows import cpp

OPERATION = register(
    "int8_rows",
    Implementation("cpp", "a row is read once, and stays in the cache until it is int8 again", cpp.unusable),
    Implementation("reference", "PyTorch's operations, one after the other"),
)


def quantize(x: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    return OPERATION.module(impl, x).quantize_rows(x)


def scale(
    products: Tensor,
    rows: Tensor,
    columns: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    residual: Tensor | None,
    impl: str,
) -> Tensor:
    return OPERATION.module(impl, products).scale_products(products, rows, columns, bias, dtype, residual)


def gelu(products: Tensor, rows: Tensor, columns: Tensor, bias: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    return OPERATION.module(impl, products).gelu_products(products, rows, columns, bias)


quantize_op = torch.library.custom_op("lavit::quantize_rows", quantize, mutates_args=())
scale_op = torch.library.custom_op("lavit::scale_products", scale, mutates_args=())
gelu_op = torch.library.custom_op("lavit::gelu_products", gelu, mutates_args=())


def _int8_like(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:1], dtype=torch.float32)


@quantize_op.register_fake
def _(x: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    return _int8_like(x)


@scale_op.register_fake
def _(
    products: Tensor,
    rows: Tensor,
    columns: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    residual: Tensor | None,
    impl: str,
) -> Tensor:
    return products.new_empty(products.shape, dtype=dtype)


@gelu_op.register_fake
def _(products: Tensor, rows: Tensor, columns: Tensor, bias: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    return _int8_like(products)
