"""The gate of LLaMA's MLP, between its first two products and the third."""

from __future__ import annotations

from torch import Tensor

from lavit.kernels.checks import check_float, check_same_device, check_same_dtype, check_shape
from lavit.kernels.swiglu.library import gated

__all__ = ["swiglu"]


def swiglu(gate: Tensor, up: Tensor, *, impl: str = "auto") -> Tensor:
    """silu(gate) * up, silu(g) = g / (1 + e^-g) (Shazeer 2020, without its products).

    gate: floating, of any shape; up: shape, dtype and device of gate.
    Returns a tensor as gate, with a gradient to both, which are kept for it. float32 on a CPU has a compiled form; all
    else is PyTorch's operations.
    Raises TypeError for a dtype that is not floating or not that of gate, and ValueError for another shape or device.
    """
    check_float("gate", gate)
    check_shape("up", up, gate.shape, "gate")
    check_same_dtype("up", up, "gate", gate)
    check_same_device("up", up, "gate", gate)
    return gated(gate, up, impl)
