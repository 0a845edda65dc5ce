"""Of each picture of a folder: its tokens, how well its features come back from them, and how much there is to see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from lavit.data.images import load_image
from lavit.evaluation.patch_pixels import PatchPixels, PatchPixelsMeter
from lavit.evaluation.picture_content import edge_density, jpeg_size
from lavit.evaluation.runner import Skipped, evaluate_items
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer


@dataclass(frozen=True)
class Seen:
    """A picture as tokens.

    keep: (N,) bool, the kept patches in raster order. cosine: mean over the patches of the cosine between the features
    that its tokens decode to and its own. other: the same with the features that another picture's tokens decode to,
    which is what guessing scores; NaN of a single picture, or where the decoder makes other features than the encoder.
    edges, bytes: `edge_density` and `jpeg_size` of the picture as the model sees it.
    """

    path: Path
    keep: np.ndarray
    cosine: float
    other: float
    edges: float
    bytes: int

    @property
    def tokens(self) -> int:
        return int(self.keep.sum())


@dataclass(frozen=True)
class FolderTokens:
    """grid: rows and columns of patches. code_counts: (K,) uses of each code. pixels: how much of the pixels features
    and tokens hold, None of too few pictures."""

    seen: list[Seen]
    grid: tuple[int, int]
    code_counts: np.ndarray
    skipped: list[Skipped]
    pixels: PatchPixels | None = None


class Resized:
    """Image files as the model sees them."""

    def __init__(self, paths: Sequence[Path], processor: LaVITImageProcessor) -> None:
        self.paths, self.processor = paths, processor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Image.Image]:
        return index, self.processor.resize(load_image(self.paths[index]))

    def name(self, index: int) -> str:
        return str(self.paths[index])


def see_files(
    tokenizer: LaVITTokenizer,
    processor: LaVITImageProcessor,
    paths: Sequence[Path],
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> FolderTokens:
    """The deterministic tokens of image files. Raises ValueError where not a single picture could be used."""

    meter = PatchPixelsMeter(tokenizer)

    def run(batch: list[tuple[int, Image.Image]]) -> list[dict[str, Any]]:
        pictures = [picture for _, picture in batch]
        images = processor(pictures).to(tokenizer.device, tokenizer.dtype)
        features = tokenizer.encode_features(images)
        tokens = tokenizer.encode(features=features, deterministic=True)
        decoded = tokenizer.decode(tokens)
        own, other = _cosines(decoded.float(), features.float())
        meter.add(images, features, decoded)
        keep, ids = tokens.keep.cpu().numpy(), tokens.ragged().to("cpu").unbind()
        rows = zip(pictures, keep, ids, own, other, strict=True)
        return [
            {
                "keep": kept,
                "ids": code.tolist(),
                "cosine": cosine,
                "other": guess,
                "edges": edge_density(picture),
                "bytes": jpeg_size(picture),
            }
            for picture, kept, code, cosine, guess in rows
        ]

    with torch.no_grad():
        done = evaluate_items(Resized(paths, processor), run, batch_size=batch_size, progress=progress, workers=None)
    if not done.results:
        first = f"; {done.skipped[0].name}: {done.skipped[0].reason}" if done.skipped else ""
        raise ValueError(f"images: none of {len(paths)} could be used{first}")
    side = tokenizer.config.image_size // tokenizer.config.patch_size
    counts = np.zeros(tokenizer.config.num_codes, np.int64)
    seen = []
    for index, row in done.results.items():
        np.add.at(counts, [number for number in row.pop("ids") if number >= 0], 1)
        seen.append(Seen(paths[index], **row))
    return FolderTokens(seen, (side, side), counts, done.skipped, meter.result() if meter.enough else None)


def _cosines(back: torch.Tensor, features: torch.Tensor) -> tuple[list[float], list[float]]:
    if back.shape != features.shape:  # made for a U-Net
        return [float("nan")] * len(features), [float("nan")] * len(features)
    own = F.cosine_similarity(back, features, dim=-1).mean(1).tolist()
    if len(features) == 1:
        return own, [float("nan")]
    return own, F.cosine_similarity(back.roll(1, 0), features, dim=-1).mean(1).tolist()
