"""What an encoder learns from: images and, where there are some, their captions."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavit.data import DataStream, ImageFolder
from lavit.data.annotations import read_captions
from lavit.language.text_tokenizer import train_text_tokenizer
from lavit.shapes.world import SHAPES_WORLD, ShapesWorld
from lavit.tokenizer import LaVITImageProcessor
from lavit.training.encoder.recipe import EncoderTrainingConfig, TextConfig
from lavit.training.engine import distributed
from lavit.training.engine.recipe import check_folders

CAPTIONS = "captions.json"


@dataclass(frozen=True)
class Captions:
    """The captions of images as ids. ids (m, L) int64, 0 behind the end: no caption has it elsewhere. first, count
    (n,) int64: which rows are those of an image; count 0 where it has none. size: number of ids."""

    ids: Tensor
    first: Tensor
    count: Tensor
    size: int

    def draw(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """One caption, at random, of each of the images ``index`` (B,): ids (B, L), and (B,) bool, whether there is
        one."""
        count = self.count[index]
        row = self.first[index] + (torch.rand(len(index)) * count).long().clamp(max=count - 1).clamp(min=0)
        return self.ids[row.clamp(max=len(self.ids) - 1)], count > 0


@dataclass
class EncoderData:
    """dataset: the images, as `DataStream` takes them. captions: None where none are learned from. bad: (name, reason)
    of captions that could not be used."""

    dataset: Any
    captions: Captions | None = None
    bad: list[tuple[str, str]] = field(default_factory=list)

    def stream(self, config: EncoderTrainingConfig, processor: LaVITImageProcessor) -> DataStream:
        """Training batches of this process."""
        return DataStream(
            self.dataset,
            config.loop.batch_size,
            transform=processor,
            seed=config.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            workers=config.workers,
        )

    def sample(self, config: EncoderTrainingConfig, processor: LaVITImageProcessor) -> DataStream:
        """One pass over the images in random order, the same on every process."""
        size, workers = config.loop.batch_size, config.workers
        return DataStream(self.dataset, size, transform=processor, seed=config.seed, epochs=1, workers=workers)


def open_data(config: EncoderTrainingConfig) -> EncoderData:
    """The images that the configuration names: every image file below the folder, with the captions of its
    captions.json where the objective wants them.

    Raises FileNotFoundError or ValueError for a folder without images, and for one without captions where the objective
    is "contrastive" or "both".
    """
    if config.data == SHAPES_WORLD:
        if config.objective in ("contrastive", "both"):
            raise ValueError(f"objective: {config.objective} needs a folder with {CAPTIONS}, got --data shapes")
        return EncoderData(ShapesWorld(config.seed, "train").scenes(config.scenes).images)
    check_folders(config, "data")
    dataset = ImageFolder(config.data)
    file = Path(config.data) / CAPTIONS
    if config.objective == "masked" or (config.objective == "auto" and not file.is_file()):
        return EncoderData(dataset)
    if not file.is_file():
        raise FileNotFoundError(f"objective: {config.objective} needs captions, and there is no {file}")
    found = read_captions(file, Path(config.data) / "images")
    said = {os.path.realpath(item.image): item.captions for item in found.items}
    texts = [said.get(os.path.realpath(path), ()) for path in dataset.paths]
    if not any(texts):
        raise ValueError(f"objective: {file} has no caption of an image below {config.data}")
    return EncoderData(dataset, encode_captions(texts, config.text), list(found.bad))


def encode_captions(texts: list[tuple[str, ...]], config: TextConfig) -> Captions:
    """The captions of each image, by a text tokenizer that is trained on them. ValueError where there is none."""
    every = [text for own in texts for text in own]
    tokenizer = train_text_tokenizer(every, config.vocabulary)
    rows = tokenizer(every, add_special_tokens=False)["input_ids"]
    ids = torch.zeros(len(rows), config.length, dtype=torch.int64)
    for place, row in zip(ids, rows, strict=True):
        row = row[: config.length] or [1]  # of an empty caption, the sign that begins a text
        place[: len(row)] = torch.tensor(row)
    count = torch.tensor([len(own) for own in texts])
    return Captions(ids, count.cumsum(0) - count, count, len(tokenizer))
