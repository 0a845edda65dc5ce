"""What the tokenizer returns: the tokens of a batch, and all that a training step computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from lavit.kernels import Ragged, Selection


class VisualTokens(NamedTuple):
    """The tokens of a batch of images.

    ids: (T,) int64 in [0, K), image after image, in raster order of the patches.
    cu_seqlens: (B + 1,) int32; image b has ``ids[cu_seqlens[b]:cu_seqlens[b + 1]]``.
    keep: (B, N) bool, the patches that became tokens.
    """

    ids: Tensor
    cu_seqlens: Tensor
    keep: Tensor

    def lengths(self) -> Tensor:
        """(B,) int32 tokens per image, on the device."""
        return self.cu_seqlens.diff()

    def ragged(self) -> Ragged:
        """The ids as a ragged batch; the bound of the lengths is the number of patches."""
        return Ragged(self.ids, self.cu_seqlens, self.keep.shape[1])

    def to(self, device: torch.device | str) -> VisualTokens:
        return VisualTokens(*(t.to(device) for t in self))


@dataclass
class LaVITTokenizerOutput(ModelOutput):
    """What one training step computes; every loss is a scalar.

    loss: reconstruction_loss + ratio_weight * ratio_loss + commitment_weight * commitment_loss.
    reconstruction_loss: mean of 1 - cos(reconstruction, features). keep_rate: share of kept patches.
    reconstruction: (B, N, C). scores: (B, N, 2) log-probabilities of the selector, keep first. selection: the mask and
    its probabilities. ids: (T,) codes (None without quantisation) and cu_seqlens (B + 1,), as in VisualTokens.
    """

    loss: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    ratio_loss: Tensor | None = None
    commitment_loss: Tensor | None = None
    keep_rate: Tensor | None = None
    reconstruction: Tensor | None = None
    selection: Selection | None = None
    ids: Tensor | None = None
    cu_seqlens: Tensor | None = None
    scores: Tensor | None = None
