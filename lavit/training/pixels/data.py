"""What stage 3 learns from: images of one size a batch, and the features that the frozen tokenizer gives of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lavit.data import DataStream, ImageFolder
from lavit.data.image_sizes import sizes_line
from lavit.pixels.image_sizes import nearest_size
from lavit.shapes.world import SHAPES_WORLD, ShapesWorld
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer
from lavit.training.engine import distributed
from lavit.training.engine.feature_cache import open_or_build
from lavit.training.engine.stage import cache_folder
from lavit.training.pixels.buckets import Buckets, Measured, Part, Size, cut
from lavit.training.pixels.recipe import PixelsTrainingConfig

logger = logging.getLogger(__name__)

AT_ONCE = 256  # images that are encoded together

# ------------------------------------------------------------------------------------------------------------- features


@torch.no_grad()
def reconstructed(tokenizer: LaVITTokenizer, features: Tensor) -> Tensor:
    """x_rec (B, N, C_out): encoder features (B, N, C) by way of their tokens. The selection draws no noise."""
    return tokenizer.decode(tokenizer.encode(features=features, deterministic=True))


def reconstructed_images(tokenizer: LaVITTokenizer, processor: LaVITImageProcessor, images: Any) -> Tensor:
    """x_rec of images as the processor takes them, on the tokenizer's device."""
    device = tokenizer.quantize.embedding.weight.device
    return reconstructed(tokenizer, tokenizer.encode_features(processor(images).to(device)))


FeaturesOf = Callable[[dict[str, Tensor]], Tensor]
"""x_rec of a batch, float32 on the tokenizer's device: computed before, or of each batch anew."""


# -------------------------------------------------------------------------------------------------------------- streams


class Rows(DataStream):
    """Batches of an array of images (n, H, W, 3), all of one size."""

    def __init__(self, images: Any, batch_size: int, seed: int) -> None:
        super().__init__(images, batch_size, seed=seed, rank=distributed.rank(), world_size=distributed.world_size())
        height, width = images.shape[1:3]
        self._ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)

    @property
    def skipped_items(self) -> list[tuple[str, str]]:
        return []

    def __next__(self) -> dict[str, Tensor]:
        batch = super().__next__()
        return batch | {"time_ids": self._ids.expand(len(batch["index"]), -1)}


Batches = Rows | Buckets
"""{"images": (B, H, W, 3) uint8, "index": (B,), "time_ids": (B, 6) float32} at a time. skipped_items: (name, reason) of
the images that could not be read so far."""


# ----------------------------------------------------------------------------------------------------------------- data


def array_data(
    config: PixelsTrainingConfig,
    tokenizer: LaVITTokenizer,
    processor: LaVITImageProcessor,
    images: Any,
    features: Tensor | None,
) -> tuple[Batches, FeaturesOf]:
    """Images (n, H, W, 3) uint8, and x_rec of all of them. features: (n, N, C) of the encoder, where they are known."""
    device = tokenizer.quantize.embedding.weight.device
    root = cache_folder(config.cache, config.output)
    if features is not None:
        parts = [reconstructed(tokenizer, part.to(device)).cpu() for part in features.split(AT_ONCE)]
        values = torch.cat(parts)
    elif root is not None:
        values = _open_cache(config, tokenizer, processor, images, processor, [], root).values
    else:
        logger.info("encoding and decoding %d images", len(images))
        starts = range(0, len(images), AT_ONCE)
        values = torch.cat(
            [reconstructed_images(tokenizer, processor, images[start : start + AT_ONCE]).cpu() for start in starts]
        )

    def features_of(batch: dict[str, Tensor]) -> Tensor:
        return values[batch["index"]].to(device, torch.float32, non_blocking=True)

    return Rows(images, config.loop.batch_size, config.seed), features_of


def folder_data(
    config: PixelsTrainingConfig,
    tokenizer: LaVITTokenizer,
    processor: LaVITImageProcessor,
    measured: Measured,
) -> tuple[Batches, FeaturesOf]:
    """A folder's images in their buckets, and x_rec from a cache or of each batch anew."""
    root = cache_folder(config.cache, config.output)
    if root is None:

        def features_of(batch: dict[str, Tensor]) -> Tensor:
            return reconstructed_images(tokenizer, processor, batch["images"])

    else:
        device, sizes = tokenizer.quantize.embedding.weight.device, measured.sizes

        def transform(images: Sequence[Image.Image]) -> Tensor:
            return processor([cut(image, nearest_size(image.height, image.width, sizes))[0] for image in images])

        told = [("sizes", torch.tensor(sizes))]
        part = Part(measured.folder, measured.numbers)
        cache = _open_cache(config, tokenizer, processor, part, transform, told, root)
        unread = [(part.numbers[index], name, reason) for index, name, reason in cache.skipped]
        measured.leave_out(unread)
        rows = torch.full((len(measured.folder),), -1)
        rows[measured.numbers] = torch.arange(len(measured.numbers))

        def features_of(batch: dict[str, Tensor]) -> Tensor:
            return cache.values[rows[batch["index"]]].to(device, torch.float32, non_blocking=True)

    return Buckets(measured, config.loop.batch_size, config.seed, config.workers), features_of


def _open_cache(
    config: PixelsTrainingConfig,
    tokenizer: LaVITTokenizer,
    processor: LaVITImageProcessor,
    dataset: Any,
    transform: Any,
    told: list[tuple[str, Tensor]],
    root: Path,
) -> Any:
    device = tokenizer.quantize.embedding.weight.device
    pixels = ("pixels", processor.as_tensor())
    return open_or_build(
        root,
        lambda images: reconstructed(tokenizer, tokenizer.encode_features(images.to(device))),
        [*sorted(tokenizer.state_dict().items()), pixels, *told],
        dataset,
        transform=transform,
        dtype=getattr(torch, config.cache.dtype),
        batch_size=config.loop.batch_size,
        workers=config.workers,
    )


def open_images(config: PixelsTrainingConfig, sizes: Sequence[Size]) -> np.ndarray | Measured:
    """The images that the configuration names: (n, 32, 32, 3) uint8 of the shapes world, or those of a folder."""
    if config.data == SHAPES_WORLD:
        return ShapesWorld(config.seed).scenes(config.scenes).images
    if not Path(config.data).is_dir():
        raise ValueError(f"data: expected shapes or a folder of images, got {config.data!r}")
    folder = ImageFolder(config.data)
    if distributed.rank() == 0:
        how = "crop" if len(sizes) == 1 else f"crop, or one of {len(sizes) - 1} more of its area"
        logger.info("%s", sizes_line(folder.paths, sizes[0], how))
    return Measured(folder, sizes)
