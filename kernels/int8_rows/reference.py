"""The definitions in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS = 127.5  # from 0 to a row's largest value, which lies between two steps, as torchao has it
LEAST = torch.finfo(torch.float32).eps


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float()
    largest = x.abs().amax(dim=1) if x.shape[1] else x.new_zeros(len(x))
    scale = (largest / STEPS).clamp(min=LEAST)
    steps = torch.where(largest.isfinite(), scale.reciprocal(), 0.0).unsqueeze(1) * x
    return steps.nan_to_num(0.0).round().clamp(-128, 127).to(torch.int8), scale


def scale_products(
    products: Tensor, rows: Tensor, columns: Tensor, bias: Tensor, dtype: torch.dtype, residual: Tensor | None
) -> Tensor:
    y = products.float() * (rows.unsqueeze(1) * columns) + bias
    return (y if residual is None else y + residual.float()).to(dtype)


def gelu_products(products: Tensor, rows: Tensor, columns: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return quantize_rows(F.gelu(scale_products(products, rows, columns, bias, torch.float32, None)))
