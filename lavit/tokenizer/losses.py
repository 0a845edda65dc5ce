"""The ratio loss of stage 1 (LaVIT section 3.1), and what a batch must know that is a part of a larger one."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lavit.tokenizer.configuration import LaVITTokenizerConfig


class BatchShare(NamedTuple):
    """What a batch is of a step's whole batch, where that is divided into micro-batches and processes. The mean over
    these parts of a loss that knows its share is the loss of the whole, and so are its gradients.

    images, tokens: scalars, the batch's share in the images and in the kept patches of the whole, times the number of
    parts; 1 where all parts have the same. keep_rate: scalar, share of kept patches of the whole.
    """

    images: Tensor
    tokens: Tensor
    keep_rate: Tensor


def ratio_loss(keep: Tensor, config: LaVITTokenizerConfig, share: BatchShare | None = None) -> Tensor:
    """(ρ − mean M)², over the batch with soft bounds for each image, or over each image; 0 at a fixed length.

    keep: (B, N) mask M with its gradient -> scalar. share: of a batch that is a part; the mean is then that of the
    whole, and the gradient what the whole's square passes on to these patches.
    """
    if keep.numel() == 0 or config.length == "fixed":
        return keep.new_zeros(())
    aim = config.keep_rate
    rates = keep.mean(dim=1)
    weight = 1.0 if share is None else share.images
    if config.ratio_scope == "image":
        return weight * (aim - rates).square().mean()
    mean = rates.mean()
    if share is None:
        loss = (aim - mean).square()
    else:
        missing = aim - share.keep_rate
        loss = missing.square() - 2 * missing * weight * (mean - mean.detach())
    if config.ratio_low:
        loss = loss + weight * (config.ratio_low * aim - rates).clamp(min=0).square().mean()
    if config.ratio_high:
        loss = loss + weight * (rates - config.ratio_high * aim).clamp(min=0).square().mean()
    return loss
