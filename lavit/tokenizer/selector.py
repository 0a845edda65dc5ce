"""The selector: which patches of an image are worth a token (LaVIT section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.kernels import Selection, gumbel_select
from lavit.kernels.gumbel_select import SEED_RANGE
from lavit.kernels.gumbel_select.reference import logistic_noise
from lavit.kernels.types import compute_dtype
from lavit.tokenizer.configuration import LaVITTokenizerConfig


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


def select_fixed(
    scores: Tensor,
    count: int,
    *,
    tau: float = 1.0,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    deterministic: bool = False,
) -> Selection:
    """`gumbel_select` with the same number of patches for every image: the ``count`` that it would keep most readily.

    Each image gets a threshold of its own, halfway between the last margin that is kept and the first that is not, in
    place of 0; of equal margins the first are kept. Arguments and Selection as there; prob is relative to the
    threshold, which has no gradient. A patch with NaN scores is not kept.
    """
    margin = scores[..., 0].double() - scores[..., 1].double()
    if noise is not None:
        margin = margin + (noise[..., 0].double() - noise[..., 1].double())
    elif not deterministic:
        if seeds is None:
            seeds = torch.randint(*SEED_RANGE, scores.shape[:1], dtype=torch.int64, device=scores.device)
        margin = margin + logistic_noise(seeds, scores.shape[1])
    ranked = margin.detach().nan_to_num(nan=-torch.inf).sort(dim=1, descending=True).values
    above = ranked[:, count - 1 : count]
    below = ranked[:, count : count + 1] if count < ranked.shape[1] else above - 1
    # Where the two are equal the equal ones stay below, and min_keep adds as many as are missing, from the first.
    threshold = torch.where(above > below, (above + below) / 2, above + 1e-6)
    shifted = (margin - threshold.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)).to(compute_dtype(scores))
    both = torch.stack((shifted, torch.zeros_like(shifted)), dim=-1)
    return gumbel_select(both, tau=tau, deterministic=True, min_keep=count)


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
