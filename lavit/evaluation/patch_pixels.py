"""How much of the pixels the features hold: what the encoder never knew, and what the tokens lose of it.

The measure is the linear R²: a ridge regression, in closed form, from the feature of a patch to the patch's own pixels,
fitted on one half of the images and measured on the other. It sees what a linear layer could draw, patch by patch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

RIDGE = 1e-4


@dataclass(frozen=True)
class PatchPixels:
    """Shares of the variance of held-out patches' pixels: 1 is all. encoder: from the frozen encoder's features.
    tokens: from the features that are decoded from the images' tokens. images: how many, of both halves."""

    encoder: float
    tokens: float
    images: int


class Regression:
    """Least squares of y (n, P) on x (n, C), from sums of products: rows may come in any number of parts.

    One instance is what is fitted on, another what is measured on.
    """

    def __init__(self) -> None:
        self.xx: Tensor | None = None
        self.xy = self.yy = torch.empty(0)
        self.rows = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows x (..., C) and y (..., P). ValueError where their numbers differ."""
        x, y = (rows.detach().flatten(0, -2).double().cpu() for rows in (x, y))
        if len(x) != len(y):
            raise ValueError(f"x, y: expected as many rows of both, got {len(x)} and {len(y)}")
        x = torch.cat((x, x.new_ones(len(x), 1)), dim=1)  # the last is the mean
        sums = x.T @ x, x.T @ y, y.square().sum(0)
        before = (self.xx, self.xy, self.yy) if self.xx is not None else tuple(map(torch.zeros_like, sums))
        self.xx, self.xy, self.yy = (one + two for one, two in zip(before, sums, strict=True))
        self.rows += len(x)

    def fit(self, ridge: float = RIDGE) -> Tensor:
        """(C + 1, P), the last row the constant. ridge: penalty as a share of each input's mean square."""
        xx, _ = self._sums()
        penalty = ridge * xx.diagonal()
        penalty = penalty.clamp(min=1e-12 * float(xx.diagonal().max()))  # an input that is always 0 gets the weight 0
        penalty[-1] = 0
        return torch.linalg.solve(xx + penalty.diag(), self.xy)

    def r2(self, weights: Tensor) -> float:
        """1 - (squared error of x @ weights) / (squared distance from the mean), over all outputs together; 0 where the
        outputs do not vary."""
        xx, mean = self._sums()
        error = self.yy.sum() - 2 * (weights * self.xy).sum() + (weights * (xx @ weights)).sum()
        spread = (self.yy - self.rows * mean.square()).sum()
        return float(1 - error / spread) if spread > 1e-12 * self.yy.sum() else 0.0

    def _sums(self) -> tuple[Tensor, Tensor]:
        if self.xx is None:
            raise ValueError("rows: expected at least one, got none")
        return self.xx, self.xy[-1] / self.rows


def linear_r2(features: Tensor, pixels: Tensor, ridge: float = RIDGE) -> float:
    """R² of pixels (n, N, P) from features (n, N, C): fitted on every other image from the first on, measured on the
    rest. ValueError for fewer than two images."""
    if len(features) != len(pixels) or len(features) < 2:
        raise ValueError(f"features, pixels: expected those of the same images, at least 2, got {len(features)}")
    fitted, held = Regression(), Regression()
    fitted.add(features[::2], pixels[::2])
    held.add(features[1::2], pixels[1::2])
    return held.r2(fitted.fit(ridge))


def pixels_of(images: Tensor, patches: int) -> Tensor:
    """Images (B, 3, S, S) as their patches' pixels (B, N, 3 p p), for a square number N of patches."""
    side = images.shape[-1] // round(patches**0.5)
    return F.unfold(images, side, stride=side).transpose(1, 2)


class PatchPixelsMeter:
    """Both measures of a tokenizer, of images that come in any number of parts. Every other image is held out. Where
    the configuration standardises the features, which may have a scale for each place, that is undone in both: one
    linear layer is fitted for all places."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.images = tokenizer, 0
        self._parts = {name: (Regression(), Regression()) for name in ("encoder", "tokens")}

    @torch.no_grad()
    def add(self, images: Tensor, features: Tensor, decoded: Tensor) -> None:
        """images (B, 3, S, S) as the processor gives them, their features (B, N, C) of ``encode_features`` and those
        that are decoded from their tokens."""
        tokenizer, wanted = self.tokenizer, pixels_of(images, features.shape[1])
        for name, values in (("encoder", features), ("tokens", decoded)):
            if tokenizer.config.standardize_features and values.shape[1:] == tokenizer.feature_std.shape:
                values = values * tokenizer.feature_std + tokenizer.feature_mean
            for half, regression in enumerate(self._parts[name]):
                begin = (half - self.images) % 2
                if len(images) > begin:
                    regression.add(values[begin::2], wanted[begin::2])
        self.images += len(images)

    @property
    def enough(self) -> bool:
        """Whether a fit says more of the features than of the images that it was made with: at least eight patches for
        each number of a feature."""
        fitted = self._parts["encoder"][0]
        return self.images > 1 and fitted.xx is not None and fitted.rows >= 8 * len(fitted.xx)

    def result(self, ridge: float = RIDGE) -> PatchPixels:
        """ValueError for fewer than two images."""
        if self.images < 2:
            raise ValueError(f"batches: expected at least 2 images, got {self.images}")
        found = {name: held.r2(fitted.fit(ridge)) for name, (fitted, held) in self._parts.items()}
        return PatchPixels(images=self.images, **found)


@torch.no_grad()
def measure_patch_pixels(tokenizer: Any, batches: Iterable[Tensor], ridge: float = RIDGE) -> PatchPixels:
    """Both measures of a tokenizer. batches: images (B, 3, S, S) as its processor gives them, of two halves together:
    every other image, counted over all batches, is held out. ValueError for fewer than two images."""
    device, meter = tokenizer.quantize.embedding.weight.device, PatchPixelsMeter(tokenizer)
    for images in batches:
        images = images.to(device)
        features = tokenizer.encode_features(images)
        meter.add(images, features, tokenizer.decode(tokenizer.encode(features=features, deterministic=True)))
    return meter.result(ridge)
