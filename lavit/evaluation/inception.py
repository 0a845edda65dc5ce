"""The Inception network of FID: Szegedy et al. (2016) as TensorFlow published it in December 2015, pooled features.

It differs from the paper's in that averages over 3 x 3 do not count the border, and that the last block takes the
maximum instead. Names of parameters are those of torch-fidelity's weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.evaluation.metric_weights import INCEPTION, fill, find_file, hub_file, read_weights

SIDE, WIDTH = 299, 2048
Resize = Literal["tensorflow", "clean"]


class _Convolution(nn.Module):
    def __init__(self, inside: int, out: int, size: int | tuple[int, int], stride: int = 1, padding: str = "valid"):
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        around = (height // 2, width // 2) if padding == "same" else (0, 0)
        self.conv = nn.Conv2d(inside, out, (height, width), stride, around, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


Layer = tuple[str, int, int | tuple[int, int]]
"""Name, channels out, size of the kernel."""


class _Block(nn.Module):
    """Branches side by side, their channels one after the other.

    branches: rows of layers, each on the one before. split: the last two layers of these branches, by number, stand
    side by side. reduce: the last layer of each branch halves the sides, and so does the pooling. pool: "average" or
    "maximum", followed by a convolution to ``pooled`` channels if that is not 0.
    """

    def __init__(
        self,
        inside: int,
        branches: Sequence[Sequence[Layer]],
        *,
        pool: str,
        pooled: int = 0,
        split: Sequence[int] = (),
        reduce: bool = False,
    ) -> None:
        super().__init__()
        self.rows: list[tuple[list[str], list[str]]] = []
        self.pool, self.pooled, self.reduce = pool, pooled, reduce
        for number, row in enumerate(branches):
            stem, ends = (row[:-2], row[-2:]) if number in split else (row[:-1], row[-1:])
            width = inside
            for name, out, size in stem:
                setattr(self, name, _Convolution(width, out, size, padding="same"))
                width = out
            for name, out, size in ends:
                end = (2, "valid") if reduce else (1, "same")
                setattr(self, name, _Convolution(width, out, size, *end))
            self.rows.append(([name for name, _, _ in stem], [name for name, _, _ in ends]))
        if pooled:
            self.branch_pool = _Convolution(inside, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for stem, ends in self.rows:
            y = x
            for name in stem:
                y = getattr(self, name)(y)
            found += [getattr(self, name)(y) for name in ends]
        if self.reduce:
            rest = F.max_pool2d(x, 3, 2)
        elif self.pool == "maximum":
            rest = F.max_pool2d(x, 3, 1, 1)
        else:
            rest = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        found.append(self.branch_pool(rest) if self.pooled else rest)
        return torch.cat(found, 1)


def _thirty_five(inside: int, pooled: int) -> _Block:
    five: list[Layer] = [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)]
    three: list[Layer] = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
    return _Block(inside, [[("branch1x1", 64, 1)], five, three], pool="average", pooled=pooled)


def _seventeen(width: int) -> _Block:
    row, column = (1, 7), (7, 1)
    once: list[Layer] = [("branch7x7_1", width, 1), ("branch7x7_2", width, row), ("branch7x7_3", 192, column)]
    sizes: list[int | tuple[int, int]] = [1, column, row, column, row]
    twice: list[Layer] = [(f"branch7x7dbl_{n}", 192 if n == 5 else width, size) for n, size in enumerate(sizes, 1)]
    return _Block(768, [[("branch1x1", 192, 1)], once, twice], pool="average", pooled=192)


def _eight(inside: int, pool: str) -> _Block:
    once: list[Layer] = [("branch3x3_1", 384, 1), ("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]
    twice: list[Layer] = [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)]
    twice += [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))]
    return _Block(inside, [[("branch1x1", 320, 1)], once, twice], pool=pool, pooled=192, split=(1, 2))


class Inception(nn.Module):
    """Images, (n, 3, H, W) uint8 or a list of (3, H, W) of any sizes -> features (n, 2048) float32.

    resize: to 299 x 299 either as TensorFlow 1 did, "tensorflow": bilinear between the four nearest pixels, corners not
    aligned (torch-fidelity, torchmetrics, the release); or "clean": Pillow's bicubic filter in float (clean-fid).
    Figures of the two do not compare.
    """

    num_features = WIDTH

    def __init__(self, resize: Resize = "tensorflow") -> None:
        super().__init__()
        if resize not in ("tensorflow", "clean"):
            raise ValueError(f"resize: expected 'tensorflow' or 'clean', got {resize!r}")
        self.resize = resize
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, padding="same")
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = (_thirty_five(*s) for s in ((192, 32), (256, 64), (288, 64)))
        three: list[Layer] = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
        self.Mixed_6a = _Block(288, [[("branch3x3", 384, 3)], three], pool="maximum", reduce=True)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(_seventeen, (128, 160, 160, 192))
        short: list[Layer] = [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)]
        long: list[Layer] = [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7))]
        long += [("branch7x7x3_3", 192, (7, 1)), ("branch7x7x3_4", 192, 3)]
        self.Mixed_7a = _Block(768, [short, long], pool="maximum", reduce=True)
        self.Mixed_7b, self.Mixed_7c = _eight(1280, "average"), _eight(2048, "maximum")
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        parameter = self.Conv2d_1a_3x3.conv.weight
        resize = resize_clean if self.resize == "clean" else resize_tensorflow
        resized = []
        for part in [images] if isinstance(images, Tensor) else [image.unsqueeze(0) for image in images]:
            if part.dtype != torch.uint8 or part.dim() != 4 or part.shape[1] != 3:
                raise ValueError(f"images: expected (n, 3, H, W) uint8, got {tuple(part.shape)} of {part.dtype}")
            resized.append(resize(part.to(parameter.device)).to(parameter.device, parameter.dtype))
        x = (torch.cat(resized) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return x.mean((2, 3))


def load_inception(
    weights: str | os.PathLike[str] | None = None, resize: Resize = "tensorflow", option: str = "--inception"
) -> Inception:
    """With the weights of a file (.safetensors, or .pth of weights alone); None: of torch-fidelity's, where torch's hub
    keeps them. Raises WeightsError, naming option and file, where they are not there or not these."""
    path: Path = find_file(weights, [hub_file(INCEPTION)], "the weights of FID's Inception", option)
    network = Inception(resize)
    fill(network, read_weights(path, option), path, option)
    return network


def resize_tensorflow(images: Tensor) -> Tensor:
    """(n, 3, H, W) -> (n, 3, 299, 299) float32: pixel i is at i * H / 299, between two neighbours."""
    x = images.float()
    for dim in (2, 3):
        length = x.shape[dim]
        # Single precision throughout, as there: places, too, are rounded the same way.
        place = torch.arange(SIDE, device=x.device, dtype=torch.float32) * (length / SIDE)
        low = place.floor().clamp(max=length - 1)
        share = (place - low).view(-1, *[1] * (3 - dim))
        below = low.long()
        above = (below + 1).clamp(max=length - 1)
        first, second = x.index_select(dim, below), x.index_select(dim, above)
        x = first + (second - first) * share
    return x


def resize_clean(images: Tensor) -> Tensor:
    """(n, 3, H, W) -> (n, 3, 299, 299) float32 on the CPU: each channel by Pillow's bicubic filter, in float."""
    planes = images.cpu().flatten(0, 1).float().numpy()
    done = [np.asarray(Image.fromarray(plane).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for plane in planes]
    found = torch.from_numpy(np.stack(done) if done else np.empty((0, SIDE, SIDE), np.float32))
    return found.clamp(0, 255).view(len(images), 3, SIDE, SIDE)
