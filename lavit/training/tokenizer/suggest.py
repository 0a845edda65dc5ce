"""A first guess of stage 1's settings for a folder of images: ``lavit train tokenizer --data FOLDER --suggest``.

What is guessed is told with its reason, measured on the pixels of a sample; nothing is trained. The rules are
*derived*: they give the shapes world, whose recipe was found by trying, about its own settings again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lavit.data import ImageFolder
from lavit.data.image_sizes import known_sizes
from lavit.data.images import ImageError
from lavit.kernels import code_statistics, nearest_code
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizerConfig
from lavit.tokenizer.configuration import PRESETS
from lavit.training.tokenizer.objective import contrast
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig

SAMPLE = 512  # images looked at
CODES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
UNEXPLAINED = 0.06  # of the patches' variance: what the codes may leave
GAIN = 0.11  # of what they leave, that twice as many codes should take away to be worth it
PATCHES_PER_CODE = 8  # of the sample's first half, at least: k-means of fewer describes the sample only
CONTRAST = 0.9  # share of all squared contrast that the kept patches should hold
USES = 2500  # of each code over the run, on average
FEWEST_STEPS = 1000


@dataclass(frozen=True)
class Suggestion:
    """settings: dotted name -> value, of what was guessed and what was given. reasons: lines, the first on the sample.
    words: of the command that runs it."""

    settings: dict[str, Any]
    reasons: list[str]
    words: list[str]


def suggest(data: str | Path, given: Mapping[str, Any] | None = None, *, seed: int = 0) -> Suggestion:
    """A guess from a sample of the images below a folder.

    given: settings that are decided already, by dotted name; of these nothing is guessed.
    Raises what `ImageFolder` raises, ConfigError for settings that are none, and ImageError where fewer than two images
    of the sample can be read.
    """
    given = dict(given or {})
    files = ImageFolder(data)
    chosen = np.random.default_rng(seed).permutation(len(files))[:SAMPLE]
    guessed: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    if "preset" not in given:
        guessed["preset"], reasons["preset"] = _preset([files.paths[index] for index in chosen])
    run = TokenizerTrainingConfig.recipe(given.get("preset", guessed.get("preset", "small")), given)
    config = LaVITTokenizerConfig.preset(run.preset, **run.tokenizer)
    images = _read(files, chosen, config.image_size)
    patches = F.unfold(images, config.patch_size, stride=config.patch_size).transpose(1, 2)
    codes, keep_rate = config.num_codes, config.keep_rate
    if "tokenizer.num_codes" not in given:
        codes, error, why = _codes(patches.flatten(0, 1), seed)
        guessed["tokenizer.num_codes"] = codes
        reasons["codes"] = f"{codes} codes: so many means leave {error:.1%} of the variance of patches; {why}"
    if "tokenizer.keep_rate" not in given:
        guessed["tokenizer.keep_rate"] = keep_rate = _keep_rate(patches)
        held = f"{CONTRAST:.0%} of what differs from its neighbours"
        reasons["keep rate"] = f"keep rate {keep_rate}: this share of the patches holds {held}"
    if "loop.steps" not in given:
        batch = run.loop.batch_size * run.loop.accumulate
        steps = max(FEWEST_STEPS, int(round(USES * codes / (batch * config.num_patches * keep_rate), -2)))
        guessed["loop.steps"] = steps
        uses, epochs = steps * batch * config.num_patches * keep_rate / codes, steps * batch / len(files)
        reasons["steps"] = f"{steps} steps: each code is used {uses:.0f} times, each image {epochs:.0f} times"
    settings = {**guessed, **given}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    looked = f"{len(images)} of {len(files)} images looked at"
    return Suggestion(settings, [looked, *reasons.values()], ["--data", str(data), *words])


def _preset(paths: Sequence[Path]) -> tuple[str, str]:
    """The largest of the small presets that half of the images fill, and why."""
    sides = {name: sizes["image_size"] for name, sizes in PRESETS.items() if name.startswith("small")}
    found = [min(size) for size in known_sizes(paths)]
    typical = int(np.median(found)) if found else 0
    filled = [name for name, side in sides.items() if side <= typical] or [min(sides, key=sides.__getitem__)]
    preset = max(filled, key=sides.__getitem__)
    return preset, f"preset {preset}, which reads {sides[preset]} pixels: half of the images have {typical} or more"


def _read(files: ImageFolder, chosen: np.ndarray, size: int) -> Tensor:
    """(n, 3, size, size) of those that can be read."""
    processor, images = LaVITImageProcessor(size=size), []
    for index in chosen:
        try:
            images.append(processor(files[int(index)]))
        except ImageError as problem:
            last = problem
    if len(images) < 2:
        raise ImageError(f"expected at least two images that can be read, got {len(images)}: {last}", str(files.root))
    return torch.cat(images)


def _codes(patches: Tensor, seed: int) -> tuple[int, float, str]:
    """How many codes, what they leave of the variance of patches (n, D) that the k-means has not seen, and why no more:
    it is little enough, twice as many would leave hardly less, or the sample could not tell more of them apart."""
    generator = torch.Generator().manual_seed(seed)
    patches = patches[torch.randperm(len(patches), generator=generator)]
    known, unseen = patches.chunk(2)
    variance = unseen.var(0).sum().clamp(min=1e-12)
    found, error = 0, 1.0
    for count in CODES:
        if found and count * PATCHES_PER_CODE > len(known):
            return found, error, "the sample could not tell more of them apart"
        means = _means(known, count)
        _, distance = nearest_code(unseen, means, metric="euclidean", normalize_x=False, return_score=True)
        left = float(distance.mean() / variance)
        if found and left > (1 - GAIN) * error:
            return found, error, f"{count} would leave {left:.1%}"
        found, error = count, left
        if error <= UNEXPLAINED:
            return found, error, f"{UNEXPLAINED:.0%} is little enough"
    return found, error, "more are not tried"


def _means(patches: Tensor, count: int, iterations: int = 8) -> Tensor:
    """k-means from the first patches, which are in random order."""
    means = patches[:count].clone()
    for _ in range(iterations):
        ids = nearest_code(patches, means, metric="euclidean", normalize_x=False)
        counts, sums = code_statistics(patches, ids, len(means))
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
    return means


def _keep_rate(patches: Tensor) -> float:
    """Share of the patches (B, N, D) that hold `CONTRAST` of all squared contrast, to two digits."""
    energy = contrast(patches).square().flatten().sort(descending=True).values
    energy = torch.where(energy > 1e-9 * patches.square().mean(), energy, 0)  # rounding of even areas is none
    needed = (energy.cumsum(0) < CONTRAST * energy.sum()).float().mean()
    return max(0.05, round(float(needed), 2))
