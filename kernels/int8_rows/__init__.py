"""What stands between products of int8: rows of activations to int8 with a scale each, and sums of int32 back.

For the frozen encoder in inference: no gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.checks import check_float, check_shape
from lavit.kernels.dispatch import AUTO, direct
from lavit.kernels.int8_rows.library import OPERATION, gelu, gelu_op, quantize, quantize_op, scale, scale_op

__all__ = ["OPERATION", "TYPES", "gelu_products", "quantize_rows", "scale_products"]

TYPES = (torch.float32, torch.bfloat16)


def quantize_rows(x: Tensor, *, impl: str = AUTO) -> tuple[Tensor, Tensor]:
    """x (M, K) float32 or bfloat16 -> int8 (M, K) and scale (M,) float32, of which x is the product, but for rounding.

    The scale is max |x| / 127.5 of the row; that of a row with NaN or Inf is not finite, and its int8 is 0.
    """
    check_float("x", x, "(M, K)")
    if x.dtype not in TYPES:
        raise ValueError(f"x: expected (M, K) of float32 or bfloat16, got {tuple(x.shape)} of {x.dtype}")
    return (quantize if direct(x) else quantize_op)(x, impl)


def scale_products(
    products: Tensor,
    rows: Tensor,
    columns: Tensor,
    bias: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    residual: Tensor | None = None,
    impl: str = AUTO,
) -> Tensor:
    """products (M, N) int32 * rows (M,) * columns (N,) + bias (N,) + residual (M, N), in float32.

    rows, columns, bias: float32; the scales of the factors. dtype: of residual and result, float32 or bfloat16.
    """
    _check(products, rows, columns, bias)
    if dtype not in TYPES:
        raise ValueError(f"dtype: expected float32 or bfloat16, got {dtype}")
    if residual is not None:
        check_shape("residual", residual, products.shape, "products")
        if residual.dtype != dtype:
            raise ValueError(f"residual: expected {dtype}, got {residual.dtype}")
    run = scale if direct(products, rows, columns, bias, residual) else scale_op
    return run(products, rows, columns, bias, dtype, residual, impl)


def gelu_products(
    products: Tensor, rows: Tensor, columns: Tensor, bias: Tensor, *, impl: str = AUTO
) -> tuple[Tensor, Tensor]:
    """GELU of :func:`scale_products`, as :func:`quantize_rows` gives it: int8 (M, N) and scale (M,)."""
    _check(products, rows, columns, bias)
    run = gelu if direct(products, rows, columns, bias) else gelu_op
    return run(products, rows, columns, bias, impl)


def _check(products: Tensor, rows: Tensor, columns: Tensor, bias: Tensor) -> None:
    if products.dim() != 2 or products.dtype != torch.int32:
        raise ValueError(f"products: expected (M, N) of int32, got {tuple(products.shape)} of {products.dtype}")
    check_shape("rows", rows, products.shape[:1], "products")
    for name, x in (("rows", rows), ("columns", columns), ("bias", bias)):
        if x.dtype != torch.float32:
            raise ValueError(f"{name}: expected float32, got {x.dtype}")
    check_shape("columns", columns, products.shape[1:], "products")
    check_shape("bias", bias, products.shape[1:], "products")
