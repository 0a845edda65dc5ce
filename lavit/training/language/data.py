"""What stage 2 learns from: images, each tokenized once, and the samples about them."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lavit.data import DataStream
from lavit.data.captioned_folder import CaptionedFolder, ImageFiles, captioned_sources, read_folder
from lavit.data.image_sizes import sizes_line
from lavit.data.mixture import Source
from lavit.data.sequences import Sequencing, encoder_of
from lavit.language.processing import LaVITProcessor
from lavit.shapes.edits import Edits, edits, edits_source
from lavit.shapes.sequences import shapes_sources
from lavit.shapes.world import Scenes, ShapesWorld
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, VisualTokens
from lavit.tokenizer.processing import encode_images, encoder_tensors
from lavit.training.engine import distributed
from lavit.training.engine.feature_cache import open_or_build
from lavit.training.language.recipe import LanguageTrainingConfig

logger = logging.getLogger(__name__)

AT_ONCE = 256  # images that are encoded together


class ImageStore:
    """Images as the frozen parts see them, each encoded and tokenized once: features (n, N, C) and tokens.

    The selection draws no noise, so that an image has the same tokens whenever it is shown or asked for.
    Features take N x C x 4 bytes an image, and stay where they are given: on a GPU, on the CPU, or memory-mapped on the
    disk. The tokens, N bytes and 8 for each token an image, are on the tokenizer's device, in every process.
    """

    def __init__(self, tokenizer: LaVITTokenizer, features: Tensor) -> None:
        self.features = features
        device = tokenizer.quantize.embedding.weight.device
        ids, lengths, keep = [], [], []
        for part in features.split(AT_ONCE):
            tokens = tokenizer.encode(features=part.to(device), deterministic=True)
            ids.append(tokens.ids)
            lengths.append(tokens.lengths().cpu())
            keep.append(tokens.keep)
        self.ids, self.keep = torch.cat(ids), torch.cat(keep)
        self.cu = nn.functional.pad(torch.cat(lengths).long().cumsum(0), (1, 0))
        self._lengths: list[int] = self.cu.diff().tolist()

    @classmethod
    def of(cls, tokenizer: LaVITTokenizer, processor: LaVITImageProcessor, images: Any) -> ImageStore:
        """From images (n, H, W, 3) uint8."""
        return cls(tokenizer, encode_images(tokenizer, processor, images))

    @classmethod
    def of_files(
        cls,
        tokenizer: LaVITTokenizer,
        processor: LaVITImageProcessor,
        files: ImageFiles,
        *,
        cache: Path | None = None,
        workers: int = 0,
    ) -> tuple[ImageStore, list[tuple[int, str, str]]]:
        """From image files, in their order, and (number, name, reason) of those that cannot be read, which are not in
        it. cache: folder for the features, where they are found again next time; None: the CPU's memory holds them.
        workers: threads that read files. Raises ImageError where not a single image can be read."""
        device = tokenizer.quantize.embedding.weight.device
        if cache is not None:
            found = open_or_build(
                cache,
                lambda images: tokenizer.encode_features(images.to(device)),
                encoder_tensors(tokenizer, processor),
                files,
                transform=processor,
                batch_size=AT_ONCE,
                workers=workers,
            )
            return cls(tokenizer, found.values), found.skipped
        with DataStream(files, AT_ONCE, transform=processor, shuffle=False, epochs=1, workers=workers) as stream:
            parts = [tokenizer.encode_features(batch["images"].to(device)).cpu() for batch in stream]
            return cls(tokenizer, torch.cat(parts)), [(bad.index, bad.name, bad.reason) for bad in stream.skipped]

    def __len__(self) -> int:
        return len(self._lengths)

    def length(self, image: int) -> int:
        """Tokens of an image."""
        return self._lengths[image]

    def take(self, images: Tensor) -> tuple[Tensor, VisualTokens]:
        """Features and tokens of some images, (n,) numbers on the CPU. The offsets stay there: nothing waits."""
        lengths = self.cu.diff()[images]
        cu = nn.functional.pad(lengths.cumsum(0), (1, 0))
        within = torch.arange(int(cu[-1])) - cu[:-1].repeat_interleave(lengths)
        rows = (self.cu[images].repeat_interleave(lengths) + within).to(self.ids.device, non_blocking=True)
        features = self.features[images.to(self.features.device, non_blocking=True)]
        keep = self.keep[images.to(self.ids.device, non_blocking=True)]
        return features.to(self.ids.device, non_blocking=True), VisualTokens(self.ids[rows], cu.int(), keep)


def sequencing(config: LanguageTrainingConfig, processor: LaVITProcessor) -> Sequencing:
    text = processor.tokenizer
    return Sequencing(encoder_of(text), text.eos_token_id, config.predict_codes, config.predict_prompts)


def edited_scenes(config: LanguageTrainingConfig, scenes: Scenes | None = None) -> Edits:
    """The first of the world's scenes, as many as the mixture needs, beside what they are changed to. scenes: the
    first ``config.scenes`` of them, where they are drawn already."""
    count = min(config.edited, config.scenes) if config.mixture.edit > 0 else 0
    return edits(ShapesWorld(config.seed), count, scenes=None if scenes is None else scenes[:count])


def shapes_data(
    config: LanguageTrainingConfig, tokenizer: LaVITTokenizer, processor: LaVITProcessor, store: ImageStore | None
) -> tuple[dict[str, Source], ImageStore]:
    """The shapes world's samples and images. store: its first scenes and then the changed ones, already tokenized."""
    world = ShapesWorld(config.seed)
    scenes = world.scenes(config.scenes)
    pairs = edited_scenes(config, scenes)
    images = len(scenes) + len(pairs)
    if store is None:
        logger.info("encoding and tokenizing %d scenes", images)
        shown = np.concatenate([scenes.images, pairs.after.images])
        store = ImageStore.of(tokenizer, processor.image_processor, shown)
    if len(store) < images or (len(pairs) and len(store) > images):
        raise ValueError(
            f"store: expected the images of {len(scenes)} scenes and {len(pairs)} changed ones, got {len(store)}"
        )
    order = sequencing(config, processor)
    return {**shapes_sources(world, scenes, order), "edit": edits_source(pairs, len(scenes), order)}, store


def open_folder(config: LanguageTrainingConfig) -> CaptionedFolder:
    """What the folder of ``config.data`` holds. Raises ValueError or OSError where it cannot be used, or has nothing of
    a kind that the mixture asks for."""
    if not Path(config.data).is_dir():
        raise ValueError(f"data: expected shapes or a folder of captioned images, got {config.data!r}")
    # What no sample is made of is not read: its images would be encoded for nothing.
    folder = read_folder(config.data, split=config.split, text=config.text, edits=config.mixture.edit > 0)
    shares = asdict(config.mixture)
    lacking = {name: reason for name, share in shares.items() if share > 0 and (reason := folder.lacks(name))}
    if lacking:
        wanted = (f"mixture.{name}: expected 0, got {shares[name]}: {reason}" for name, reason in lacking.items())
        raise ValueError("; ".join(wanted))
    return folder


def folder_data(
    config: LanguageTrainingConfig, folder: CaptionedFolder, tokenizer: LaVITTokenizer, processor: LaVITProcessor
) -> tuple[dict[str, Source], ImageStore, list[tuple[str, str]]]:
    """The folder's samples and images, and (name, reason) of what cannot be used of it."""
    files = ImageFiles(folder.root, folder.paths)
    cache = Path(config.output) / "features" if config.output is not None else None
    shown = processor.image_processor
    if distributed.rank() == 0:
        logger.info("%s", sizes_line(files.paths, (shown.size, shown.size), shown.fit))
    logger.info("encoding and tokenizing %d images", len(files))
    store, unread = ImageStore.of_files(
        tokenizer, processor.image_processor, files, cache=cache, workers=config.workers
    )
    numbers = {number for number, _, _ in unread}
    readable = (path for number, path in enumerate(files.paths) if number not in numbers)
    images = {path: number for number, path in enumerate(readable)}
    sources = captioned_sources(folder, images, sequencing(config, processor))
    return sources, store, [*folder.bad, *((name, reason) for _, name, reason in unread)]
