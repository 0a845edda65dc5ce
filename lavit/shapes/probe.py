"""A probe: a small classifier that reads objects and places back from features, decoded or the encoder's own."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.data.whole_numbers import whole_number
from lavit.shapes.world import CELLS, GRID, NUM_CLASSES

BATCH = 128


@dataclass(frozen=True)
class ProbeScore:
    """Shares of right answers: of single cells (kind and colour, or nothing), and of scenes with all cells right."""

    cell: float
    scene: float


class CellProbe(nn.Module):
    """What stands in each cell of a shapes-world scene, from the features of the cell's patches.

    One hidden layer, shared by all cells: it cannot know a scene by heart, and is told no more than one cell at a time.
    Features (B, N, C) -> scores (B, 4, NUM_CLASSES). Raises ``ValueError`` where N is not a square number of patches
    that the cells divide evenly.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_patches: int, width: int, hidden: int = 128) -> None:
        super().__init__()
        self.side = round(num_patches**0.5)
        if self.side**2 != num_patches or self.side % GRID:
            raise ValueError(f"num_patches: expected a square of a multiple of {GRID}, got {num_patches}")
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.net = nn.Sequential(
            nn.Linear(num_patches // CELLS * width, hidden), nn.GELU(), nn.Linear(hidden, NUM_CLASSES)
        )

    def forward(self, features: Tensor) -> Tensor:
        batch, _, width = features.shape
        half = self.side // GRID
        x = ((features - self.mean) / self.std).view(batch, GRID, half, GRID, half, width)
        return self.net(x.permute(0, 1, 3, 2, 4, 5).reshape(batch, CELLS, half * half * width))

    @torch.no_grad()
    def read(self, features: Tensor) -> Tensor:
        """features (n, N, C) -> the most likely kind of each cell, (n, 4) int64 on the CPU."""
        parts = [self(part).argmax(-1).cpu() for part in features.split(512)]
        return torch.cat(parts) if parts else torch.empty(0, CELLS, dtype=torch.int64)

    def score(self, features: Tensor, cells: np.ndarray) -> ProbeScore:
        """The shares of right answers on scenes whose ``cells`` (n, 4) are known."""
        return score(self.read(features).numpy(), cells)


def score(answers: np.ndarray, cells: np.ndarray) -> ProbeScore:
    """answers and cells (n, 4) -> the shares of right cells and of right scenes."""
    if answers.shape != cells.shape or len(cells) == 0:
        raise ValueError(f"answers: expected the shape {cells.shape} of cells and no empty set, got {answers.shape}")
    right = answers == cells
    return ProbeScore(float(right.mean()), float(right.all(1).mean()))


def train_probe(
    features: Tensor,
    cells: np.ndarray,
    *,
    steps: int = 400,
    batch_size: int = BATCH,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> CellProbe:
    """Train a probe on features (n, N, C) of scenes whose ``cells`` (n, 4) are known.

    The caller's random generators are left as they were. Raises TypeError for a seed that is not whole.
    """
    seed = whole_number("seed", seed)
    if len(features) != len(cells) or len(features) == 0:
        raise ValueError(f"features: expected one row for each of {len(cells)} scenes (not 0), got {len(features)}")
    device = features.device
    truth = torch.from_numpy(cells).to(device)
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        probe = CellProbe(features.shape[1], features.shape[2]).to(device)
    probe.mean.copy_(features.mean((0, 1)))
    probe.std.copy_(features.std((0, 1)).clamp(min=1e-6))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=learning_rate, weight_decay=1e-2, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min((step + 1) / 20, (steps - step) / (0.7 * steps), 1.0)
        rows = torch.randint(len(features), (batch_size,), generator=order).to(device)
        loss = F.cross_entropy(probe(features[rows]).flatten(0, 1), truth[rows].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return probe.eval()


def chance(known: np.ndarray, cells: np.ndarray) -> ProbeScore:
    """What the best answers score that look at nothing: the most frequent kind, and the most frequent scene, of the
    ``known`` (m, 4) scenes, given for each of ``cells`` (n, 4)."""
    kind = Counter(known.ravel().tolist()).most_common(1)[0][0]
    scene = Counter(map(tuple, known.tolist())).most_common(1)[0][0]
    return ProbeScore(float((cells == kind).mean()), float((cells == np.array(scene)).all(1).mean()))
