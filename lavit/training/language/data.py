"""What stage 2 learns from: images, each tokenized once, and the samples about them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lavit.data.captioned_folder import CaptionedFolder, ImageFiles, captioned_sources, read_folder
from lavit.data.image_sizes import sizes_line
from lavit.data.mixture import MARKERS, Source
from lavit.data.sequences import Sequencing, encoder_of
from lavit.data.split import divided_folder, only_of, sample
from lavit.language.processing import LaVITProcessor
from lavit.shapes.edits import Edits, edits, edits_source
from lavit.shapes.sequences import shapes_sources
from lavit.shapes.world import Scenes, ShapesWorld
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, VisualTokens
from lavit.tokenizer.processing import encode_images, encoder_tensors
from lavit.tokenizer.token_store import TokenStore
from lavit.training.engine import distributed
from lavit.training.engine.feature_files import NOWHERE, CachePlaces, FeatureFiles, FeatureRows
from lavit.training.engine.validation_settings import check_apart
from lavit.training.language.recipe import LanguageTrainingConfig
from lavit.training.language.shares import shares_of

logger = logging.getLogger(__name__)

AT_ONCE = 256  # images that are encoded together


class ImageStore(TokenStore):
    """Images as the frozen parts see them, each encoded and tokenized once: features (n, N, C) and tokens.

    Features take N x C x 4 bytes an image, and stay where they are given: on a GPU, on the CPU, or memory-mapped on the
    disk. The tokens are in every process.
    """

    def __init__(self, tokenizer: LaVITTokenizer, features: Tensor | FeatureRows) -> None:
        super().__init__(tokenizer, features.split(AT_ONCE))
        self.features = features

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
        cache: CachePlaces = NOWHERE,
        workers: int = 0,
    ) -> tuple[ImageStore, list[tuple[int, str, str]]]:
        """From image files, in their order, and (number, name, reason) of those that cannot be read, which are not in
        it. cache: where features are looked for and kept; by default the CPU's memory holds them. workers: threads that
        read files. Raises ImageError where not a single image can be read."""
        device = tokenizer.quantize.embedding.weight.device
        depends_on = encoder_tensors(tokenizer, processor)
        kept = FeatureFiles(cache.read, depends_on, write_to=cache.write, any_precision=True)
        found = kept.of(
            files,
            lambda images: tokenizer.encode_features(images.to(device)),
            transform=processor,
            batch_size=AT_ONCE,
            workers=workers,
        )
        return cls(tokenizer, found.values), found.skipped

    def take(self, images: Tensor) -> tuple[Tensor, VisualTokens]:
        """Features and tokens of some images, (n,) numbers on the CPU. The offsets stay there: nothing waits."""
        features = self.features[images.to(self.features.device, non_blocking=True)]
        return features.to(self.ids.device, non_blocking=True), self.tokens_of(images)


def sequencing(config: LanguageTrainingConfig, processor: LaVITProcessor) -> Sequencing:
    text = processor.tokenizer
    shown = "codes" if config.prompt_images == "codes" else "features"
    return Sequencing(encoder_of(text), text.eos_token_id, config.predict_codes, config.predict_prompts, shown)


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


@dataclass(frozen=True)
class FolderData:
    """What a folder of captioned images holds to train on, and what is held out. shares: of the kinds of samples."""

    train: CaptionedFolder
    held_out: CaptionedFolder | None
    shares: dict[str, float]


def open_folder(config: LanguageTrainingConfig) -> FolderData:
    """What the folder of ``config.data`` holds. Raises ValueError or OSError where it cannot be used, or has nothing of
    a kind that was given a share by hand."""
    if not Path(config.data).is_dir():
        raise ValueError(f"data: expected shapes or a folder of captioned images, got {config.data!r}")
    # What no sample is made of is not read: its images would be encoded for nothing.
    edits = config.mixture.edit > 0
    folder = read_folder(config.data, split=config.split, text=config.text, edits=edits)
    held_out = None
    if config.validation is not None:
        check_apart(config.data, config.validation)
        held_out = read_folder(config.validation, edits=edits)
        held_out = replace(held_out, texts=held_out.texts[: config.validation_images])
    elif config.validation_share:
        whole = len(folder.paths)
        folder, held_out, lost = divided_folder(folder, config.validation_share)
        if not folder.captions or not held_out.captions:
            what = "training" if not folder.captions else "what is held out"
            raise ValueError(f"validation_share: {config.validation_share} of {whole} images leaves none for {what}")
        if lost:
            logger.info("%d edits are left out: one of their images is held out, the other is not", lost)
    if held_out is not None:
        chosen = set(sample(held_out.paths, held_out.root, config.validation_images))
        held_out = only_of(held_out, chosen.__contains__)
    return FolderData(folder, held_out, shares_of(config.mixture, folder))


def folder_data(
    config: LanguageTrainingConfig, folder: CaptionedFolder, tokenizer: LaVITTokenizer, processor: LaVITProcessor
) -> tuple[dict[str, Source], ImageStore, list[tuple[str, str]]]:
    """The folder's samples and images, and (name, reason) of what cannot be used of it."""
    files = ImageFiles(folder.root, folder.paths)
    shown = processor.image_processor
    if distributed.rank() == 0:
        logger.info("%s", sizes_line(files.paths, (shown.size, shown.size), shown.fit))
    logger.info("encoding and tokenizing %d images", len(files))
    store, unread = ImageStore.of_files(
        tokenizer, processor.image_processor, files, cache=CachePlaces.of(config), workers=config.workers
    )
    numbers = {number for number, _, _ in unread}
    readable = (path for number, path in enumerate(files.paths) if number not in numbers)
    images = {path: number for number, path in enumerate(readable)}
    room = config.token_budget - tokenizer.num_patches - MARKERS
    sources = captioned_sources(folder, images, sequencing(config, processor), room)
    return sources, store, [*folder.bad, *((name, reason) for _, name, reason in unread)]
