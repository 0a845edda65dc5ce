"""What a run of the quickstart measured, and the numbers that its report and its figure both show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from statistics import fmean
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
class Rate:
    """A share of right ones, what guessing has, and the most that could be reached, where that is known (else NaN)."""

    model: float
    chance: float
    ceiling: float = math.nan


@dataclass
class Answer:
    """What the model answered to a question about a scene, and whether that is true."""

    question: str
    true: str
    given: str
    correct: bool


@dataclass
class Spoken:
    """A held-out scene in words: uint8 (H, W, 3), its true caption, what the model said, and its answers."""

    image: np.ndarray
    caption: str
    said: str
    answers: list[Answer] = field(default_factory=list)


@dataclass
class Request:
    """An image asked for: the prompt, what a program reads from the tokens that were drawn, and how many these are.

    image: the scene, uint8 (H, W, 3), that the prompt shows before its words, which then ask for a change of it.
    wanted: the caption of what is asked for, where it is not the prompt itself.
    """

    prompt: str
    read: str
    tokens: int
    image: np.ndarray | None = None
    wanted: str = ""

    @property
    def true(self) -> str:
        return self.wanted or self.prompt


@dataclass
class LanguageResult:
    """What the language stage learned, on ``scenes`` held-out scenes and ``questions`` about them.

    captions: "exact" (word for word the true one), "recall" and "precision" of the objects that they name.
    readable: share of captions that say something in the world's words. answers: "mean", and each kind of question.
    images: what is read from the tokens drawn for captions: "scene" (every cell right), "cell", "recall" and
    "precision" of objects, with the true images' own tokens as the ceiling. edits: the same of tokens drawn for a scene
    and the words for one change of it; chance is then what a guess has that looks at the scene and does not read the
    words. tokens, edited_tokens: mean number "drawn" for an image, and "true", of the scene's own. parameters: part ->
    number. history: rows with step, loss, text_loss, image_loss, tokens_per_second, lr. seconds: of "training" and
    "judging". settings: of both.
    """

    scenes: int
    questions: int
    captions: dict[str, Rate]
    readable: float
    answers: dict[str, Rate]
    images: dict[str, Rate]
    tokens: dict[str, float]
    edits: dict[str, Rate] = field(default_factory=dict)
    edited_tokens: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    spoken: list[Spoken] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    changes: list[Request] = field(default_factory=list)
    model_path: str = ""


@dataclass
class Painting:
    """A held-out scene, uint8 (H, W, 3), its caption, and what was painted for it in each way: the image, and what a
    program reads from its pixels.

    words: way -> what was asked with the scene, where its words are not the caption. wanted: way -> the caption of what
    is right, where it is another scene.
    """

    image: np.ndarray
    caption: str
    images: dict[str, np.ndarray]
    read: dict[str, str]
    words: dict[str, str] = field(default_factory=dict)
    wanted: dict[str, str] = field(default_factory=dict)

    def true(self, way: str) -> str:
        """The caption of what is right."""
        return self.wanted.get(way, self.caption)


@dataclass
class PixelsResult:
    """What the pixel stage learned, read by a program from images of ``scenes`` held-out scenes.

    ways: "image" (from the scene's own tokens) and, where there is a language model, "text" (from the caption) and
    "image and text" (from the scene and the words for one change of it), each with "scene" (every cell right), "recall"
    of objects and "cell". What is asked for, painted from its true image's own tokens, is the ceiling of the others: it
    differs by chance from what they can reach.
    unclear: way -> share of cells that are like nothing of the world. parameters: part -> number. history: rows with
    step, loss, images_per_second, lr. seconds: of "training" and "judging". settings: of both.
    """

    scenes: int
    ways: dict[str, dict[str, Rate]]
    unclear: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    paintings: list[Painting] = field(default_factory=list)
    model_path: str = ""


@dataclass
class QuickstartResult:
    """Everything that one run of the quickstart measured.

    seconds: wall clock of the whole run. parameters: part of the model -> number of parameters.
    encoder_history: rows with step, loss, accuracy. history: rows with step, loss, reconstruction_loss, ratio_loss,
    commitment_loss, keep_rate, codes_used, perplexity, images_per_second, phase; a key may be missing from a row.
    content: number of objects -> tokens of each held-out scene with that many. code_counts: (K,) uses of each code.
    cosines: mean reconstruction cosine of each held-out scene. grid: rows and columns of patches, N = their product.
    length: "dynamic", or "fixed" where every image has as many tokens. language, pixels: None where the run had no
    such stage.
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
    length: str = "dynamic"
    language: LanguageResult | None = None
    pixels: PixelsResult | None = None


def mean_tokens(content: Mapping[int, Sequence[int]]) -> dict[int, float]:
    """Number of objects -> mean number of tokens, for the numbers of objects that occur, in order."""
    return {objects: fmean(tokens) for objects, tokens in sorted(content.items()) if len(tokens)}


def perplexity(counts: Sequence[int]) -> float:
    """exp of the entropy of the codes: how many of them, used evenly, would carry as much. NaN without uses."""
    total = sum(counts)
    if total == 0:
        return math.nan
    return math.exp(-sum(n / total * math.log(n / total) for n in counts if n))


def phases(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Name, first and last step of each run of rows with the same ``phase``; a phase ends where the next begins."""
    runs = [(name, list(rows)) for name, rows in groupby(history, key=lambda row: str(row.get("phase") or ""))]
    starts = [float(rows[0]["step"]) for _, rows in runs]
    ends = starts[1:] + [float(rows[-1]["step"]) for _, rows in runs[-1:]]
    return [(name, start, end) for (name, _), start, end in zip(runs, starts, ends, strict=True) if name]


def mean_of(values: Sequence[float]) -> float:
    """The mean of the finite values, NaN without one."""
    finite = [float(v) for v in values if math.isfinite(v)]
    return fmean(finite) if finite else math.nan
