"""Held-out numbers of stage 3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lavit.data import DataStream, ImageError
from lavit.data.stream import seed_of
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer
from lavit.training.engine.loop import Run
from lavit.training.engine.validation import fingerprint_of
from lavit.training.pixels.buckets import Measured, Part, cut_all, time_ids
from lavit.training.pixels.data import FeaturesOf, features_of_files, reconstructed_images
from lavit.training.pixels.objective import Step, latents_of
from lavit.training.pixels.recipe import PixelsTrainingConfig

GOLDEN = 0.6180339887498949  # (sqrt(5) - 1) / 2, whose multiples modulo 1 are spread evenly


class PixelsValidation:
    """loss and error of the averaged weights on held-out images, with their conditions. Each image has a time and a
    noise of its own, the same whenever it is looked at; the times of all are spread evenly. Of a VAE the mode is taken,
    not a draw."""

    def __init__(
        self,
        config: PixelsTrainingConfig,
        tokenizer: LaVITTokenizer,
        processor: LaVITImageProcessor,
        held_out: Any,
        step_of: Callable[[Any], Step],
        highres: bool,
    ) -> None:
        """held_out: images (n, H, W, 3) uint8, or `Measured`. step_of: what holds a U-Net and its conditioner -> their
        step. highres: whether the U-Net is told sizes."""
        self.config, self.held_out, self.step_of, self.highres = config, held_out, step_of, highres
        self.bad: list[tuple[str, str]] = []
        self.features_of: FeaturesOf
        if isinstance(held_out, Measured):
            self.fingerprint = fingerprint_of(held_out.folder.paths, held_out.folder.root)
            self.features_of = features_of_files(config, tokenizer, processor, held_out)
        else:
            self.fingerprint = f"shapes {config.seed} {len(held_out)}"
            parts = torch.from_numpy(held_out).split(config.loop.batch_size)
            values = torch.cat([reconstructed_images(tokenizer, processor, part).cpu() for part in parts])
            self.features_of = lambda batch: values[batch["index"]]

    @property
    def skipped_items(self) -> list[tuple[str, str]]:
        measured = self.held_out.bad if isinstance(self.held_out, Measured) else []
        return list(dict([*measured, *self.bad]).items())

    def __call__(self, run: Run) -> dict[str, float]:
        trained: Any = run.model
        step = self.step_of(trained.average)
        alphas, vae, _ = step._frozen
        sums: dict[str, Tensor] = {}
        count = 0
        for batch in self._batches():
            images = batch["images"].to(run.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            x = latents_of(images, vae, draw=False)
            numbers = batch["index"].tolist()
            time = torch.tensor([int((number + 0.5) * GOLDEN % 1 * len(alphas)) for number in numbers])
            noise = torch.stack([_noise(number, x[0]) for number in numbers])
            dropped = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            told = batch["time_ids"].to(run.device) if self.highres else None
            features = self.features_of(batch).to(run.device)
            errors = step.errors(x, features, time.to(x.device), noise.to(x), dropped, told)
            for name, value in errors.items():
                sums[name] = sums.get(name, 0) + value.double().sum()
            count += len(x)
        if not count:
            raise ImageError("none of the held-out images can be read")
        return {name: float(value) / count for name, value in sums.items()}

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        size = self.config.loop.batch_size
        if not isinstance(self.held_out, Measured):
            height, width = self.held_out.shape[1:3]
            ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
            for batch in DataStream(self.held_out, size, shuffle=False, epochs=1):
                yield batch | {"time_ids": ids.expand(len(batch["index"]), -1)}
            return
        measured = self.held_out
        members: dict[tuple[int, int], list[int]] = {}
        for number in measured.numbers:
            members.setdefault(measured.size_of(number), []).append(number)
        for shape, numbers in members.items():
            part = Part(measured.folder, numbers)
            reading: dict[str, Any] = {"transform": partial(cut_all, size=shape), "workers": self.config.workers}
            with DataStream(part, size, shuffle=False, epochs=1, **reading) as stream:
                with suppress(ImageError):  # none of this size can be read
                    for batch in stream:
                        own = [numbers[index] for index in batch["index"].tolist()]
                        told = [time_ids(measured.originals[number], shape) for number in own]
                        ids = torch.tensor(told, dtype=torch.float32)
                        yield {"images": batch["images"], "index": torch.tensor(own), "time_ids": ids}
                self.bad += [(item.name, item.reason) for item in stream.skipped]
                gone = {numbers[item.index] for item in stream.skipped}
                measured.numbers = [number for number in measured.numbers if number not in gone]


def _noise(number: int, like: Tensor) -> Tensor:
    """Of an image, drawn on the CPU: the same on every device."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed_of("held out", number)))
