"""The Fréchet distance between two sets of features (FID, Heusel et al. 2017), over several processes and with a file
that keeps the statistics of the true images."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavit.data.atomic_write import atomic_write
from lavit.training.engine import distributed


@dataclass(frozen=True)
class Statistics:
    """mean (D,) and covariance (D, D) of features, float64 on the CPU, of ``count`` images; 0 where a file of others
    does not say of how many. about: plain data, what they were made from."""

    mean: Tensor
    covariance: Tensor
    count: int
    about: dict[str, Any] = field(default_factory=dict)


class Moments:
    """Sums over features, from which the statistics come. Sums of several processes add up."""

    def __init__(self, width: int) -> None:
        self.sums = torch.zeros(1 + width + width * width, dtype=torch.float64)
        self.width = width

    def add(self, features: Tensor) -> None:
        """features (n, D)."""
        if features.dim() != 2 or features.shape[1] != self.width:
            raise ValueError(f"features: expected (n, {self.width}), got {tuple(features.shape)}")
        rows = features.detach().cpu().double()
        self.sums[0] += len(rows)
        self.sums[1 : 1 + self.width] += rows.sum(0)
        self.sums[1 + self.width :] += (rows.T @ rows).flatten()

    def statistics(self, *, across_processes: bool = False) -> Statistics:
        """Raises ValueError for fewer than two images."""
        sums = self.sums.clone()
        if across_processes and distributed.is_distributed():
            on_device = sums.to("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
            sums = distributed.reduce_sum(on_device).cpu()
        count = round(float(sums[0]))
        if count < 2:
            raise ValueError(f"expected at least two images, got {count}")
        mean = sums[1 : 1 + self.width] / count
        outer = sums[1 + self.width :].view(self.width, self.width)
        return Statistics(mean, (outer - count * torch.outer(mean, mean)) / (count - 1), count)


def distance(first: Statistics, second: Statistics) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½). ValueError for statistics of another width.

    The trace of the root is the sum of the singular values of Σ₁^½ Σ₂^½. Covariances of fewer images than features are
    singular, and need no care so.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"statistics: expected the same width, got {len(first.mean)} and {len(second.mean)}")
    one, two = _root(first.covariance), _root(second.covariance)
    shared = torch.linalg.svdvals(one @ two).sum()
    apart = (first.mean - second.mean).square().sum()
    found = float(apart + first.covariance.trace() + second.covariance.trace() - 2 * shared)
    return max(found, 0.0)  # of a set with itself, rounding may leave a little less


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def save_statistics(path: str | os.PathLike[str], statistics: Statistics) -> None:
    """As an .npz with mu and sigma, as clean-fid and others have it, and what they were made from."""
    with atomic_write(path) as file:
        np.savez(
            file,
            mu=statistics.mean.numpy(),
            sigma=statistics.covariance.numpy(),
            count=np.int64(statistics.count),
            about=np.array(json.dumps(statistics.about)),
        )


def load_statistics(path: str | os.PathLike[str]) -> Statistics:
    """From an .npz with mu (D,) and sigma (D, D). ValueError for any other file; nothing is unpickled."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (np.asarray(file[name], dtype=np.float64) for name in ("mu", "sigma"))
            count = int(file["count"]) if "count" in file.files else 0
            about = json.loads(str(file["about"])) if "about" in file.files else {}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"--statistics: expected an .npz with mu and sigma, {path}: {reason}") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"--statistics: {path}: expected (D,) and (D, D), got {mean.shape} and {covariance.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"--statistics: {path} holds values that are not finite")
    return Statistics(torch.from_numpy(mean), torch.from_numpy(covariance), count, about)


def check_about(path: str | os.PathLike[str], known: dict[str, Any], wanted: dict[str, Any]) -> None:
    """ValueError where a file's statistics were made in another way; what a file does not say is not compared."""
    for name, value in wanted.items():
        if name in known and known[name] != value:
            raise ValueError(
                f"--statistics: {Path(path)} was made with {name} {known[name]}, now it is {value}; give another file, "
                "or remove this one"
            )
