"""The selector: which patches of an image are worth a token (LaVIT section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.kernels.types import compute_dtype

from .configuration import LaVITTokenizerConfig


class Selector(nn.Module):
    """Log-probabilities of keeping (class 0) and dropping (class 1) every patch, in float32 (float64 stays).

    The second half of the hidden channels is replaced, for every patch, by its mean over the image, so that the choice
    knows the whole image (the release; DynamicViT's predictor).
    """

    def __init__(self, config: LaVITTokenizerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.in_conv = nn.Sequential(nn.LayerNorm(width, eps=config.layer_norm_eps), nn.Linear(width, width), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, width // 4),
            nn.GELU(),
            nn.Linear(width // 4, 2),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, 2) log-probabilities."""
        with torch.autocast(features.device.type, enabled=False):
            x = features.to(compute_dtype(features))
            x = in_precision(self.in_conv, x)
            local, context = x.chunk(2, dim=-1)
            x = torch.cat((local, context.mean(dim=1, keepdim=True).expand_as(local)), dim=-1)
            return in_precision(self.out_conv, x).log_softmax(dim=-1)


def in_precision(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Run linear layers, norms and activations in the precision of ``x``, whatever the parameters are stored in."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
        elif isinstance(layer, nn.LayerNorm):
            x = F.layer_norm(x, layer.normalized_shape, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.eps)
        else:
            x = layer(x)
    return x
