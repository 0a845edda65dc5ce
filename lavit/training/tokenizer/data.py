"""What stage 1 learns from: images, or the features that the frozen encoder gives of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavit.data import DataStream
from lavit.data.image_folder import ImageFiles
from lavit.data.image_sizes import sizes_line
from lavit.shapes.world import SHAPES_WORLD, ShapesWorld
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer
from lavit.tokenizer.processing import encoder_tensors, processor_for
from lavit.training.engine import distributed
from lavit.training.engine.feature_cache import open_or_build
from lavit.training.engine.feature_files import FEATURES, FeatureFiles
from lavit.training.engine.recipe import check_folders
from lavit.training.engine.stage import cache_folder
from lavit.training.engine.validation import count_of_scenes, divided_images
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig

logger = logging.getLogger(__name__)


def open_dataset(config: TokenizerTrainingConfig) -> tuple[Any, Any]:
    """The images that the configuration names, to train on and held out: uint8 arrays (n, 32, 32, 3) or image files;
    None where none are held out."""
    if config.data == SHAPES_WORLD:
        count = count_of_scenes(config)
        held_out = ShapesWorld(config.seed, "test").scenes(count).images if count else None
        return ShapesWorld(config.seed, "train").scenes(config.scenes).images, held_out
    check_folders(config, "data", "validation")
    return divided_images(config)


class TrainingImages:
    """The images that the configuration names. dataset: an array or image files."""

    def __init__(self, config: TokenizerTrainingConfig, tokenizer: LaVITTokenizer, dataset: Any) -> None:
        self.config, self.tokenizer, self.dataset = config, tokenizer, dataset
        self.processor = processor_of(config, tokenizer)
        self._skipped: dict[str, str] = {}
        self._streams: list[DataStream] = []
        if isinstance(dataset, ImageFiles) and distributed.rank() == 0:
            size = self.processor.size, self.processor.size
            logger.info("%s", sizes_line(dataset.paths, size, self.processor.fit))

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of the images that could not be read so far."""
        seen = {item.name: item.reason for stream in self._streams for item in stream.skipped}
        return list((self._skipped | seen).items())

    def sample(self) -> DataStream:
        """One pass over the images in random order, the same on every process."""
        return self._remember(
            DataStream(
                self.dataset,
                self.config.loop.batch_size,
                transform=self.processor,
                seed=self.config.seed,
                epochs=1,
                workers=self.config.workers,
            )
        )

    def stream(self) -> DataStream:
        """The training batches: images, or their features from the cache."""
        root = cache_folder(self.config.cache, self.config.output)
        if root is None:
            return self._remember(open_stream(self.dataset, "images", self.config, self.processor))
        return open_stream(self.features(root), "features", self.config)

    def features(self, root: Path) -> Any:
        """The encoder's features of all images that can be read, from the cache in a folder: they are kept there."""
        config, tokenizer = self.config, self.tokenizer
        device, dtype = tokenizer.quantize.embedding.weight.device, getattr(torch, config.cache.dtype)
        depends_on = encoder_tensors(tokenizer, self.processor)

        def encode(images: Tensor) -> Tensor:
            return tokenizer.encode_features(images.to(device))

        reading: dict[str, Any] = {"transform": self.processor, "batch_size": config.loop.batch_size}
        if not isinstance(self.dataset, ImageFiles):
            return open_or_build(root, encode, depends_on, self.dataset, dtype=dtype, **reading).values
        others = [Path(config.model) / FEATURES] if config.model is not None else []
        store = FeatureFiles([root, *others], depends_on, write_to=root, dtype=dtype)
        found = store.of(self.dataset, encode, workers=config.workers, **reading)
        self._skipped |= {name: reason for _, name, reason in found.skipped}
        return found.values

    def leave_out(self, stream: DataStream) -> None:
        """What a pass over the image files could not read: named, and no part of the data set from now on."""
        if stream.skipped:
            self._skipped |= {item.name: item.reason for item in stream.skipped}
            bad = {item.index for item in stream.skipped}
            kept = [path for number, path in enumerate(self.dataset.paths) if number not in bad]
            self.dataset = ImageFiles(self.dataset.root, kept)

    def _remember(self, stream: DataStream) -> DataStream:
        self._streams.append(stream)
        return stream


def open_stream(dataset: Any, key: str, config: TokenizerTrainingConfig, transform: Any = None) -> DataStream:
    """Training batches of this process under ``key``, in the order of the seed."""
    return DataStream(
        dataset,
        config.loop.batch_size,
        key=key,
        transform=transform,
        seed=config.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        workers=config.workers if transform is not None else 0,
    )


def processor_of(config: TokenizerTrainingConfig, tokenizer: LaVITTokenizer) -> LaVITImageProcessor:
    """The image processor of the model that the run started from, else its encoder's, else CLIP's with the tokenizer's
    size; with the configuration's way to make squares, where it names one."""
    external, size = tokenizer.config.external_encoder, tokenizer.config.image_size
    if config.model is None and external is not None and external["mean"] is not None:
        return LaVITImageProcessor(size, external["mean"], external["std"], config.fit or "stretch")
    return processor_for(size, config.model or config.encoder, config.fit)
