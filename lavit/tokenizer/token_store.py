"""The tokens of many images, each tokenized once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lavit.tokenizer.model import LaVITTokenizer
from lavit.tokenizer.outputs import VisualTokens


class TokenStore:
    """Tokens of images, N bytes and 8 for each token an image, on the tokenizer's device.

    The selection draws no noise, so that an image has the same tokens whenever it is taken.
    """

    def __init__(self, tokenizer: LaVITTokenizer, features: Iterable[Tensor]) -> None:
        """features: (b, N, C) of the encoder at a time."""
        device = tokenizer.quantize.embedding.weight.device
        ids, lengths, keep = [], [], []
        for part in features:
            tokens = tokenizer.encode(features=part.to(device), deterministic=True)
            ids.append(tokens.ids)
            lengths.append(tokens.lengths().cpu())
            keep.append(tokens.keep)
        self.ids, self.keep = torch.cat(ids), torch.cat(keep)
        self.cu = nn.functional.pad(torch.cat(lengths).long().cumsum(0), (1, 0))
        self._lengths = self.cu.diff().tolist()

    def __len__(self) -> int:
        return len(self._lengths)

    def length(self, image: int) -> int:
        """Tokens of an image."""
        return self._lengths[image]

    def tokens_of(self, images: Tensor) -> VisualTokens:
        """Of some images, (n,) numbers on the CPU. The offsets stay there: nothing waits."""
        lengths = self.cu.diff()[images]
        cu = nn.functional.pad(lengths.cumsum(0), (1, 0))
        within = torch.arange(int(cu[-1])) - cu[:-1].repeat_interleave(lengths)
        rows = (self.cu[images].repeat_interleave(lengths) + within).to(self.ids.device, non_blocking=True)
        keep = self.keep[images.to(self.ids.device, non_blocking=True)]
        return VisualTokens(self.ids[rows], cu.int(), keep)
