"""What a pipeline is given: codes, images or features, checked; every error names the image at fault."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lavit.data.images import load_image
from lavit.kernels import Ragged
from lavit.tokenizer import LaVITImageProcessor, VisualTokens
from lavit.tokenizer.processing import one_by_one


def read_codes(tokens: VisualTokens | Ragged, num_codes: int, num_patches: int) -> Ragged:
    """The codes as a ragged batch of at most ``num_patches`` ids an image. Waits for the device once.

    Raises TypeError for another type and ValueError naming the first image with a code outside [0, num_codes) or with
    more codes than the decoder has positions, and for offsets that do not fit the codes.
    """
    if not isinstance(tokens, (VisualTokens, Ragged)):
        raise TypeError(f"tokens: expected VisualTokens or Ragged, got {type(tokens).__name__}")
    codes = tokens.ragged() if isinstance(tokens, VisualTokens) else tokens
    ids, cu = codes.values, codes.cu_seqlens
    if ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"tokens: expected integer codes of shape (T,), got {ids.dtype} {tuple(ids.shape)}")
    if cu.dim() != 1 or not len(cu):
        raise ValueError(f"tokens: expected cu_seqlens of shape (B + 1,), got {tuple(cu.shape)}")
    bounds, wrong = cu.long(), ((ids < 0) | (ids >= num_codes)).long()
    before = torch.cat((wrong.new_zeros(1), wrong.cumsum(0)))
    fits = (bounds[0] == 0) & (bounds.diff() >= 0).all() & (bounds[-1] <= len(ids))
    counts = before[bounds.clamp(0, len(ids))].diff()
    told = torch.cat((fits.long().view(1), bounds.diff(), counts)).tolist()
    if not told[0]:
        raise ValueError(f"tokens: expected cu_seqlens that rise from 0 to at most {len(ids)}, got {cu.tolist()}")
    lengths, faults = told[1 : len(cu)], told[len(cu) :]
    for image, length in enumerate(lengths):
        if length > num_patches:
            raise ValueError(
                f"tokens: expected at most {num_patches} codes an image, the decoder's positions, "
                f"got {length} for image {image}"
            )
        if faults[image]:
            own = ids[bounds[image] : bounds[image + 1]]
            first = int(own[((own < 0) | (own >= num_codes)).nonzero()[0]])
            raise ValueError(f"tokens: expected codes 0 to {num_codes - 1}, got {first} for image {image}")
    return Ragged(ids[: sum(lengths)].long(), cu.int(), max(lengths, default=0))


def read_images(images: Any, processor: LaVITImageProcessor | None, side: int) -> Tensor:
    """(B, 3, side, side), normalised.

    images: one or a list of PIL images, paths, bytes of files, uint8 arrays (H, W, 3) or (3, H, W), or float tensors
    in [0, 1], as the image processor takes them; a batch of the arrays; or pixels (B, 3, side, side) that it has made.
    Raises ValueError or TypeError naming the image that cannot be read, and ValueError where there is no processor.
    """
    if isinstance(images, Tensor) and images.is_floating_point() and images.dim() == 4:
        if images.shape[1:] != (3, side, side):
            raise ValueError(f"images: expected pixels of shape (B, 3, {side}, {side}), got {tuple(images.shape)}")
        return images
    if processor is None:
        raise ValueError("images: expected normalised pixels (B, 3, S, S), since the pipeline has no image_processor")
    read = [_read_image(f"image {place}", image, processor) for place, image in enumerate(one_by_one(images))]
    return torch.cat(read) if read else torch.empty(0, 3, side, side)


def _read_image(name: str, image: Any, processor: LaVITImageProcessor) -> Tensor:
    if isinstance(image, (str, PathLike, bytes, Image.Image)):
        title = f": {image}" if isinstance(image, (str, PathLike)) else ""
        return processor(load_image(image, name=name + title))
    try:
        if getattr(image, "ndim", None) == 4:
            raise ValueError(f"expected one image, got shape {tuple(image.shape)}")
        return processor(image)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name}: {error}") from error


def check_features(features: Any, num_patches: int, dim: int) -> Tensor:
    if not isinstance(features, Tensor) or features.dim() != 3 or features.shape[1:] != (num_patches, dim):
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"features: expected decoded features of shape (B, {num_patches}, {dim}), got {got}")
    return features


def check_size(name: str, size: int, multiple: int) -> int:
    """A side in pixels that VAE and U-Net can divide."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % multiple:
        raise ValueError(f"{name}: expected a positive multiple of {multiple} (VAE and U-Net halve it), got {size!r}")
    return size
