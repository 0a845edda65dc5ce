"""What a LLaMA layer does between its products, compiled for the CPU (csrc/cpu/llama.cpp): one pass forward and one
backward, where transformers' formulas take a dozen each. No operation of its own: who calls it has transformers' for
every other place, and asks :func:`usable` first."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lavit.kernels.dispatch import direct
from lavit.kernels.extension import cpu_operator_unusable

VECTOR_BYTES = 0  # of the vectors that the gate is computed with, as in varlen_attention/cpp.py


@cache
def _compiled() -> bool:
    return cpu_operator_unusable("silu_gate", "cpu") is None


def usable(x: Tensor) -> bool:
    """Whether rows x can be computed here as transformers would: plain float32 in the CPU's memory, nothing being
    compiled, watched or cast. Of float64 transformers makes float32 in its norms; here it stays, for comparisons."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and direct(x, gradient=True)
    return plain and not torch.is_autocast_enabled("cpu") and _compiled()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension. x (T, C), weight (C,) in x's dtype -> (T, C)."""
    return _Norm.apply(x, weight, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + rotate_half(x) sin. x (T, H, D), cos and sin (T, D) in x's dtype, without gradient -> (T, H, D)."""
    return _Rotation.apply(x, cos, sin)


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of one shape. float64, in which nothing is fast, by PyTorch."""
    return _Gate.apply(gate, up) if gate.dtype == torch.float32 else F.silu(gate) * up


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out, inverse = torch.ops.lavit_cpp.rms_norm.default(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw = torch.ops.lavit_cpp.rms_norm_backward.default(grad.contiguous(), *ctx.saved_tensors)
        return dx, dw, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return torch.ops.lavit_cpp.rotate.default(x, cos, sin, False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return torch.ops.lavit_cpp.rotate.default(grad.contiguous(), *ctx.saved_tensors, True), None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return torch.ops.lavit_cpp.silu_gate.default(gate, up, VECTOR_BYTES)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return torch.ops.lavit_cpp.silu_gate_backward.default(grad.contiguous(), *ctx.saved_tensors, VECTOR_BYTES)
