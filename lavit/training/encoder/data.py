"""What an encoder learns from: images and, where there are some, their captions."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavit.data import DataStream
from lavit.data.annotations import read_captions
from lavit.data.image_folder import ImageFiles
from lavit.language.text_tokenizer import train_text_tokenizer
from lavit.shapes.world import SHAPES_WORLD, ShapesWorld
from lavit.tokenizer import LaVITImageProcessor
from lavit.training.encoder.recipe import EncoderTrainingConfig, TextConfig
from lavit.training.engine import distributed
from lavit.training.engine.recipe import check_folders
from lavit.training.engine.validation import count_of_scenes, divided_images

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

    def once(self, config: EncoderTrainingConfig, processor: LaVITImageProcessor, shuffle: bool = True) -> DataStream:
        """One pass over the images, in random order or in their own, the same on every process."""
        return DataStream(
            self.dataset,
            config.loop.batch_size,
            transform=processor,
            shuffle=shuffle,
            seed=config.seed,
            epochs=1,
            workers=config.workers,
        )

    def with_captions(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of a stream with a caption for each image, where captions are learned from: "captions" (B, L), and
        "told" (B,), whether the image has one."""
        if self.captions is None:
            return batch
        captions, told = self.captions.draw(batch["index"])
        return batch | {"captions": captions, "told": told}


def open_data(config: EncoderTrainingConfig) -> tuple[EncoderData, EncoderData | None]:
    """The images that the configuration names, and those held out: every image file below the folder, with the captions
    of its captions.json where the objective wants them.

    Raises FileNotFoundError or ValueError for a folder without images, and for one without captions where the objective
    is "contrastive" or "both".
    """
    if config.data == SHAPES_WORLD:
        if config.objective in ("contrastive", "both"):
            raise ValueError(f"objective: {config.objective} needs a folder with {CAPTIONS}, got --data shapes")
        count = count_of_scenes(config)
        held = EncoderData(ShapesWorld(config.seed, "test").scenes(count).images) if count else None
        return EncoderData(ShapesWorld(config.seed, "train").scenes(config.scenes).images), held
    check_folders(config, "data", "validation")
    files, held_files = divided_images(config)
    file = Path(config.data) / CAPTIONS
    if config.objective == "masked" or (config.objective == "auto" and not file.is_file()):
        return EncoderData(files), None if held_files is None else EncoderData(held_files)
    if not file.is_file():
        raise FileNotFoundError(f"objective: {config.objective} needs captions, and there is no {file}")
    texts, bad = _texts(Path(config.data), files)
    if not any(texts):
        raise ValueError(f"objective: {file} has no caption of an image below {config.data}")
    tokenizer = train_text_tokenizer((text for own in texts for text in own), config.text.vocabulary)
    data = EncoderData(files, encode_captions(texts, tokenizer, config.text), bad)
    if held_files is None:
        return data, None
    told, unused = _texts(Path(config.validation or config.data), held_files)
    captions = encode_captions(told, tokenizer, config.text) if any(told) else None
    return data, EncoderData(held_files, captions, unused if config.validation else [])


def _texts(folder: Path, files: ImageFiles) -> tuple[list[tuple[str, ...]], list[tuple[str, str]]]:
    """The captions of each file, and (name, reason) of those that could not be used."""
    if not (folder / CAPTIONS).is_file():
        return [()] * len(files), []
    found = read_captions(folder / CAPTIONS, folder / "images")
    said = {os.path.realpath(item.image): item.captions for item in found.items}
    return [said.get(os.path.realpath(path), ()) for path in files.paths], list(found.bad)


def encode_captions(texts: list[tuple[str, ...]], tokenizer: Any, config: TextConfig) -> Captions:
    """The captions of each image, of which there is at least one, by a text tokenizer."""
    rows = tokenizer([text for own in texts for text in own], add_special_tokens=False)["input_ids"]
    ids = torch.zeros(len(rows), config.length, dtype=torch.int64)
    for place, row in zip(ids, rows, strict=True):
        row = row[: config.length] or [1]  # of an empty caption, the sign that begins a text
        place[: len(row)] = torch.tensor(row)
    count = torch.tensor([len(own) for own in texts])
    return Captions(ids, count.cumsum(0) - count, count, len(tokenizer))
