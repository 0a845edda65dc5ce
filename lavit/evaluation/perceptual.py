"""How alike two pictures of one size are: PSNR, SSIM, LPIPS."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.evaluation.metric_weights import (
    ALEXNET,
    LPIPS_HEADS,
    WeightsError,
    find_file,
    hub_file,
    lpips_heads_places,
    read_weights,
)

MOST = 100.0
"""The PSNR of pictures that are the same, in dB, where the formula gives no number."""


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """10 log10(255² / mean squared difference) of two (H, W, 3) uint8, in dB; at most 100."""
    _check(first, second)
    error = np.square(first.astype(np.float64) - second.astype(np.float64)).mean()
    return min(MOST, float(10 * np.log10(255**2 / error))) if error > 0 else MOST


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004) of two (H, W, 3) uint8, by scikit-image: a Gaussian of 1.5 pixels over
    11 x 11, the mean over channels. ValueError for sides below 11."""
    _check(first, second)
    if min(first.shape[:2]) < 11:
        raise ValueError(f"SSIM: expected pictures of at least 11 x 11, got {first.shape[1]} x {first.shape[0]}")
    from skimage.metrics import structural_similarity  # slow to import

    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(first, second, data_range=255, channel_axis=2, **wang))


def _check(first: np.ndarray, second: np.ndarray) -> None:
    for name, picture in (("first", first), ("second", second)):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"{name}: expected (H, W, 3) uint8, got {picture.shape} of {picture.dtype}")
    if first.shape != second.shape:
        raise ValueError(f"second: expected the shape of first, {first.shape}, got {second.shape}")


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al., 2018), version 0.1, by AlexNet: 0 for the same picture.

    After each of the five convolutions: features of length 1 at every place, their squared differences weighted by
    channel, the mean over places; and the sum of these.
    """

    LAYERS = ((0, 64, 11, 4, 2), (3, 192, 5, 1, 2), (6, 384, 3, 1, 1), (8, 256, 3, 1, 1), (10, 256, 3, 1, 1))
    POOLED = (3, 6)  # these layers read the maxima over 3 x 3 of every second place
    SMALLEST = 31
    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        inside = 3
        for number, out, size, stride, around in self.LAYERS:
            setattr(self, f"layer{number}", nn.Conv2d(inside, out, size, stride, around))
            self.register_buffer(f"head{number}", torch.zeros(1, out, 1, 1))
            inside = out
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two (n, 3, H, W) uint8 -> (n,) float32. ValueError for other shapes, and for sides below 31."""
        if first.shape != second.shape or first.dtype != torch.uint8 or second.dtype != torch.uint8:
            raise ValueError(f"second: expected uint8 like first, {tuple(first.shape)}, got {tuple(second.shape)}")
        if min(first.shape[2:]) < self.SMALLEST:
            sides = f"{first.shape[3]} x {first.shape[2]}"
            raise ValueError(f"LPIPS: expected pictures of at least {self.SMALLEST} x {self.SMALLEST}, got {sides}")
        x = torch.cat([first, second]).to(self.shift.device).float() / 127.5 - 1
        x = (x - self.shift) / self.scale
        total = torch.zeros(len(first), device=x.device)
        for number, *_ in self.LAYERS:
            if number in self.POOLED:
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(getattr(self, f"layer{number}")(x))
            unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            one, two = unit.chunk(2)
            total += ((one - two).square() * getattr(self, f"head{number}")).sum(1).mean((1, 2))
        return total


def load_lpips(
    trunk: str | os.PathLike[str] | None = None,
    heads: str | os.PathLike[str] | None = None,
    options: tuple[str, str] = ("--alexnet", "--lpips"),
) -> LPIPS:
    """trunk: weights of torchvision's AlexNet; None: where torch's hub keeps them. heads: LPIPS's own, alex.pth; None:
    the hub's, or what the packages lpips or torchmetrics bring. WeightsError where they are not there or not these."""
    network = LPIPS()
    path = find_file(trunk, [hub_file(ALEXNET)], "AlexNet's weights, for LPIPS,", options[0])
    own = find_file(heads, lpips_heads_places(), f"LPIPS's own weights ({LPIPS_HEADS})", options[1])
    weights, linear = read_weights(path, options[0]), read_weights(own, options[1])
    for place, (number, *_) in enumerate(LPIPS.LAYERS):
        layer = getattr(network, f"layer{number}")
        for target, source, name, file, option in (
            (layer.weight, weights, f"features.{number}.weight", path, options[0]),
            (layer.bias, weights, f"features.{number}.bias", path, options[0]),
            (getattr(network, f"head{number}"), linear, f"lin{place}.model.1.weight", own, options[1]),
        ):
            if name not in source:
                raise WeightsError(f"{option}: {file} lacks {name}")
            if source[name].shape != target.shape:
                shapes = f"{tuple(target.shape)}, got {tuple(source[name].shape)}"
                raise WeightsError(f"{option}: {file}: expected {name} of shape {shapes}")
            target.copy_(source[name])
    return network
