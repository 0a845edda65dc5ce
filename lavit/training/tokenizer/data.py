"""What stage 1 learns from: images, or the features that the frozen encoder gives of them."""

from __future__ import annotations

import logging
from typing import Any

import torch

from lavit.data import DataStream, ImageFolder
from lavit.data.image_folder import ImageFiles
from lavit.data.image_sizes import sizes_line
from lavit.shapes.world import SHAPES_WORLD, ShapesWorld
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer
from lavit.tokenizer.processing import encoder_tensors, processor_for
from lavit.training.engine import distributed
from lavit.training.engine.feature_cache import open_or_build
from lavit.training.engine.recipe import check_folders
from lavit.training.engine.stage import cache_folder
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig

logger = logging.getLogger(__name__)


def open_dataset(config: TokenizerTrainingConfig) -> Any:
    """The images that the configuration names: a uint8 array (n, 32, 32, 3) or the files of a folder."""
    if config.data == SHAPES_WORLD:
        return ShapesWorld(config.seed, "train").scenes(config.scenes).images
    check_folders(config, "data")
    return ImageFolder(config.data)


class TrainingImages:
    """The images that the configuration names."""

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
        config, tokenizer = self.config, self.tokenizer
        root = cache_folder(config.cache, config.output)
        if root is None:
            return self._remember(open_stream(self.dataset, "images", config, self.processor))
        device = tokenizer.quantize.embedding.weight.device
        cache = open_or_build(
            root,
            lambda images: tokenizer.encode_features(images.to(device)),
            encoder_tensors(tokenizer, self.processor),
            self.dataset,
            transform=self.processor,
            dtype=getattr(torch, config.cache.dtype),
            batch_size=config.loop.batch_size,
            workers=config.workers,
        )
        self._skipped |= {name: reason for _, name, reason in cache.skipped}
        return open_stream(cache.values, "features", config)

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
    """The image processor of the model that the run started from, else CLIP's with the tokenizer's size; with the
    configuration's way to make squares, where it names one."""
    return processor_for(tokenizer.config.image_size, config.model, config.fit)
