"""What the quickstart found, and the page that shows it: one HTML file that needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lavit.kernels.dispatch import Choice


@dataclass
class Stage:
    """A part of the run, with its wall-clock seconds and a sentence on what it did."""

    name: str
    seconds: float
    note: str = ""


@dataclass
class Scene:
    """A held-out scene of the shapes world.

    image: uint8 (H, W, 3). keep: bool (N,) kept patches in raster order. tokens: how many codes describe it.
    cosine: mean cosine of reconstructed and true features. read_back: the caption that the probe reads from the tokens.
    """

    image: np.ndarray
    keep: np.ndarray
    caption: str
    tokens: int
    cosine: float
    read_back: str
    correct: bool


@dataclass
class Photo:
    """A real photograph: uint8 (H, W, 3) of at most 512 pixels a side, and where it comes from."""

    name: str
    source: str
    image: np.ndarray
    keep: np.ndarray
    tokens: int
    cosine: float


@dataclass
class ProbeRow:
    """One question to a small classifier: the share of right answers from tokens, from the encoder, and by chance."""

    what: str
    tokens: float
    encoder: float
    chance: float


@dataclass
class QuickstartResult:
    """Everything that one run of the quickstart measured.

    seconds: wall clock of the whole run. parameters: part of the model -> number of parameters.
    encoder_history: rows with step, loss, accuracy. history: rows with step, loss, reconstruction_loss, ratio_loss,
    commitment_loss, keep_rate, codes_used, perplexity, images_per_second, phase; a key may be missing from a row.
    content: number of objects -> tokens of each held-out scene with that many. code_counts: (K,) uses of each code.
    cosines: mean reconstruction cosine of each held-out scene. grid: rows and columns of patches, ``N = rows * columns``.
    """

    command: str
    seconds: float
    device: str
    threads: int
    seed: int
    versions: dict[str, str] = field(default_factory=dict)
    model_path: str = ""
    parameters: dict[str, int] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    encoder_history: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    scenes: list[Scene] = field(default_factory=list)
    photos: list[Photo] = field(default_factory=list)
    content: dict[int, list[int]] = field(default_factory=dict)
    code_counts: list[int] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    probe: list[ProbeRow] = field(default_factory=list)
    kernels: list[Choice] = field(default_factory=list)
    grid: tuple[int, int] = (8, 8)
