"""Sets of image files for FID: their statistics over all processes, those of true images kept in a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lavit.data.images import load_image
from lavit.evaluation.frechet import Moments, Statistics, check_about, load_statistics, save_statistics
from lavit.evaluation.runner import Skipped, evaluate_items
from lavit.training.engine import distributed

Progress = Callable[[int, int], None]


class Files:
    """Image files as items; ``change`` is made of each image."""

    def __init__(self, paths: Sequence[Path], change: Callable[[int, Image.Image], Image.Image] | None = None) -> None:
        self.paths, self.change = paths, change

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = load_image(self.paths[index])
        return as_tensor(image if self.change is None else self.change(index, image))

    def name(self, index: int) -> str:
        return str(self.paths[index])


def as_tensor(image: Image.Image) -> Tensor:
    """RGB -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def picture_statistics(
    network: Any, files: Files, *, batch_size: int = 32, progress: Progress | None = None
) -> tuple[Statistics, list[Skipped]]:
    """The statistics of the features of image files, and those that could not be read; work is divided among the
    processes, and all get the whole. ValueError for fewer than two images."""
    moments = Moments(network.num_features)

    def run(batch: list[Tensor]) -> list[None]:
        moments.add(network(batch))
        return [None] * len(batch)

    done = evaluate_items(files, run, batch_size=batch_size, progress=progress, workers=None)
    return moments.statistics(across_processes=True), done.skipped


def true_statistics(
    network: Any,
    files: Files,
    cache: str | os.PathLike[str] | None,
    about: dict[str, Any],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> tuple[Statistics, list[Skipped]]:
    """`picture_statistics`, read from the file ``cache`` where it is there, else written to it by the first process.

    about: what they are made with, such as the network's weights; ValueError where the file says another.
    """
    there = distributed.from_first(cache is not None and Path(cache).exists())
    if cache is not None and there:
        statistics = load_statistics(cache)
        check_about(cache, statistics.about, about)
        return statistics, []
    statistics, skipped = picture_statistics(network, files, batch_size=batch_size, progress=progress)
    statistics = Statistics(statistics.mean, statistics.covariance, statistics.count, about)
    if cache is not None and distributed.rank() == 0:
        save_statistics(cache, statistics)
    return statistics, skipped


def fingerprint(network: torch.nn.Module) -> str:
    """Of the weights of a network: the same for the same weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(network.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
