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

from lavit.data import DataStream
from lavit.data.image_folder import ImageFiles
from lavit.data.image_sizes import sizes_line
from lavit.pixels.image_sizes import nearest_size
from lavit.shapes.world import SHAPES_WORLD, ShapesWorld
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer
from lavit.tokenizer.processing import encoder_tensors
from lavit.tokenizer.token_store import TokenStore
from lavit.training.engine import distributed
from lavit.training.engine.feature_cache import open_or_build
from lavit.training.engine.feature_files import CachePlaces, FeatureFiles
from lavit.training.engine.stage import cache_folder
from lavit.training.engine.validation import count_of_scenes, divided_images
from lavit.training.pixels.buckets import Buckets, Measured, Size, cut
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
        values = open_or_build(
            root,
            lambda images: reconstructed(tokenizer, tokenizer.encode_features(images.to(device))),
            _all_of(tokenizer, processor),
            images,
            transform=processor,
            dtype=getattr(torch, config.cache.dtype),
            batch_size=config.loop.batch_size,
            workers=config.workers,
        ).values
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
    """A folder's images in their buckets, and x_rec of them."""
    features_of = features_of_files(config, tokenizer, processor, measured)
    return Buckets(measured, config.loop.batch_size, config.seed, config.workers), features_of


def features_of_files(
    config: PixelsTrainingConfig, tokenizer: LaVITTokenizer, processor: LaVITImageProcessor, measured: Measured
) -> FeaturesOf:
    """x_rec of a folder's images by their numbers: from the encoder's features that earlier stages have kept, where all
    are there; from a cache of its own; or of each batch anew. Images that a cache cannot read are left out."""
    device = tokenizer.quantize.embedding.weight.device
    files = ImageFiles(measured.folder.root, [measured.folder.paths[number] for number in measured.numbers])
    rows = torch.full((len(measured.folder),), -1)
    store = tokens_there(config, tokenizer, processor, measured, files)
    if store is not None:
        rows[measured.numbers] = torch.arange(len(measured.numbers))
        return lambda batch: tokenizer.decode(store.tokens_of(rows[batch["index"]]).to(device)).float()
    root = cache_folder(config.cache, config.output)
    if root is None:
        return lambda batch: reconstructed_images(tokenizer, processor, batch["images"])
    sizes = measured.sizes

    def transform(images: Sequence[Image.Image]) -> Tensor:
        return processor([cut(image, nearest_size(image.height, image.width, sizes))[0] for image in images])

    depends_on = [*_all_of(tokenizer, processor), ("sizes", torch.tensor(sizes))]
    found = FeatureFiles([], depends_on, write_to=root, dtype=getattr(torch, config.cache.dtype)).of(
        files,
        lambda images: reconstructed(tokenizer, tokenizer.encode_features(images.to(device))),
        transform=transform,
        batch_size=config.loop.batch_size,
        workers=config.workers,
    )
    measured.leave_out([(measured.numbers[index], name, reason) for index, name, reason in found.skipped])
    rows[measured.numbers] = torch.arange(len(measured.numbers))
    return lambda batch: found.values[rows[batch["index"]]].to(device, torch.float32, non_blocking=True)


def tokens_there(
    config: PixelsTrainingConfig,
    tokenizer: LaVITTokenizer,
    processor: LaVITImageProcessor,
    measured: Measured,
    files: ImageFiles,
) -> TokenStore | None:
    """The tokens of all files by the features that stage 1 or 2 has kept of them, of any precision. What is missing is
    added with ``cache.enabled``, where stage 1 has a place for it; otherwise None, as where an image is cut so that the
    encoder would see another one."""
    if not all(_seen_whole(measured, number, processor.size) for number in measured.numbers):
        return None
    depends_on, places, dtype = encoder_tensors(tokenizer, processor), CachePlaces.of(config), config.cache.dtype
    kept = FeatureFiles(
        places.read, depends_on, write_to=places.write, dtype=getattr(torch, dtype), any_precision=True
    )
    found = kept.find(files)
    if found is None and config.cache.enabled and places.shared:
        device = tokenizer.quantize.embedding.weight.device
        added = kept.of(
            files,
            lambda images: tokenizer.encode_features(images.to(device)),
            transform=processor,
            batch_size=config.loop.batch_size,
            workers=config.workers,
        )
        measured.leave_out([(measured.numbers[index], name, reason) for index, name, reason in added.skipped])
        found = added.values
    if found is None:
        return None
    logger.info("%d images by the features that are kept of them", len(found))
    return TokenStore(tokenizer, found.split(AT_ONCE))


def _seen_whole(measured: Measured, number: int, side: int) -> bool:
    """Whether the encoder sees the image that was cut as it sees the file: nothing is cut off, and nothing resized that
    would be resized again."""
    original, size = measured.originals[number], measured.size_of(number)
    return original == size or (original[0] == original[1] and size == (side, side))


def _all_of(tokenizer: LaVITTokenizer, processor: LaVITImageProcessor) -> list[tuple[str, Tensor]]:
    """What x_rec of pixels depends on."""
    pixels = ("pixels", processor.as_tensor())
    return [*sorted(tokenizer.state_dict().items()), pixels]


def open_images(
    config: PixelsTrainingConfig, sizes: Sequence[Size]
) -> tuple[np.ndarray | Measured, np.ndarray | Measured | None]:
    """The images that the configuration names, to train on and held out: (n, 32, 32, 3) uint8 of the shapes world, or
    those of a folder; None where none are held out."""
    if config.data == SHAPES_WORLD:
        count = count_of_scenes(config)
        held_out = ShapesWorld(config.seed, "test").scenes(count).images if count else None
        return ShapesWorld(config.seed).scenes(config.scenes).images, held_out
    if not Path(config.data).is_dir():
        raise ValueError(f"data: expected shapes or a folder of images, got {config.data!r}")
    train, held = divided_images(config)
    if distributed.rank() == 0:
        how = "crop" if len(sizes) == 1 else f"crop, or one of {len(sizes) - 1} more of its area"
        logger.info("%s", sizes_line(train.paths, sizes[0], how))
    return Measured(train, sizes), None if held is None else Measured(held, sizes)
