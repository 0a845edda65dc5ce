"""LayerNorm over the library's operation."""

from __future__ import annotations

from torch import Tensor, nn

from lavit.kernels import layer_norm


class LayerNorm(nn.LayerNorm):
    """torch.nn.LayerNorm over the last dimension, parameters and all, computed by :func:`lavit.kernels.layer_norm`."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.weight, self.bias, self.eps)
