"""What a model draws of a folder: its pictures again from their tokens, pictures for captions, and changed pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lavit.data.images import ImageError, load_image
from lavit.data.stream import seed_of
from lavit.evaluation.perceptual import psnr
from lavit.evaluation.reconstruction import Draw, Judges, reconstruct_files, write_png
from lavit.evaluation.runner import Skipped, evaluate_items
from lavit.evaluation.tasks import Model

GALLERY, GALLERY_VALUES = 256, 2**25
"""The most pictures that a drawn one is compared with, and the most values that their features have together."""
NEAREST = 10


@dataclass(frozen=True)
class Rebuilt:
    """A picture and the file of what is drawn from its tokens. flat: the PSNR of a picture of its mean colour alone."""

    path: Path
    drawn: Path
    tokens: int
    psnr: float
    ssim: float
    flat: float


@dataclass(frozen=True)
class Asked:
    """words: what asks for a picture. true: the picture that is asked for. shown: the picture that the words change,
    which the model is shown first."""

    words: str
    true: Path
    shown: Path | None = None


@dataclass(frozen=True)
class Drawn:
    """What the model drew for it.

    cosine: of the features that its tokens decode to and those of the true picture, mean over the patches. rank: how
    many pictures of the gallery are nearer to it than the true one. before: the cosine with the picture shown, where
    there is one. picture: the file with its pixels; None where nothing draws pixels.
    """

    asked: Asked
    tokens: int
    cosine: float
    rank: int
    before: float | None
    picture: Path | None


@dataclass(frozen=True)
class FolderDrawn:
    """gallery: the number of pictures that each one drawn is compared with, the true one among them."""

    drawn: list[Drawn]
    gallery: int
    skipped: list[Skipped]

    @property
    def among(self) -> int:
        """How many of the nearest are looked at: of a small gallery the nearest alone."""
        return NEAREST if self.gallery > 2 * NEAREST else 1

    def found(self, among: int = NEAREST) -> float:
        """Share of those drawn to which the true picture is among the nearest."""
        return sum(one.rank < among for one in self.drawn) / len(self.drawn)

    def chance(self, among: int = NEAREST) -> float:
        """The same of pictures that have nothing to do with what is asked for."""
        return min(1.0, among / self.gallery)


def rebuild_files(
    tokenizer: Any,
    processor: Any,
    draw: Draw,
    paths: Sequence[Path],
    pictures: Path,
    *,
    seed: int = 0,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Rebuilt], list[Skipped]]:
    """Image files drawn again into the folder ``pictures``, as `reconstruct_files` does, and what could not be."""
    report = reconstruct_files(
        tokenizer,
        processor,
        draw,
        paths,
        pictures,
        Judges(),
        seed_of=lambda number: seed_of(seed, number),
        batch_size=batch_size,
        progress=progress,
    )
    found = []
    for row in report.results:
        drawn = load_image(row["drawn"])
        true = np.asarray(processor.seen(load_image(row["file"])).resize(drawn.size, Image.Resampling.BICUBIC))
        flat = np.broadcast_to(true.mean((0, 1)).round().astype(np.uint8), true.shape)
        own = (row["tokens"], row["psnr"], row["ssim"], psnr(true, flat))
        found.append(Rebuilt(Path(row["file"]), Path(row["drawn"]), *own))
    return found, report.skipped


def draw_asked(
    model: Model,
    processor: Any,
    asked: Sequence[Asked],
    others: Sequence[Path],
    draw: Draw | None,
    pictures: Path,
    *,
    seed: int = 0,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> FolderDrawn:
    """A picture for each of what is asked, compared in the frozen encoder's features with the true ones and others.

    others: more pictures for the gallery, of which as many are taken as there is room for; those that cannot be read
    are not. draw: what makes pixels of tokens, None for none; they go to the folder ``pictures`` as 0.png, ... by the
    number of what is asked. settings: of ``LaVIT.generate_tokens``. Picture i depends on the seed and i.
    Raises ValueError where not a single one could be drawn.
    """
    tokenizer, image_processor = model.visual_tokenizer, processor.image_processor

    def run(batch: list[tuple[int, Any]]) -> list[dict[str, Any]]:
        seeds = [seed_of(seed, index) for index, _ in batch]
        prompts = [prompt for _, prompt in batch]
        codes = model.generate_tokens(prompts, processor, seeds=seeds, batch_size=len(batch), **settings).codes
        with torch.no_grad():
            features = _directions(tokenizer.decode(codes))
        if draw is not None:
            drawn = draw(codes, seeds, [asked[index].words for index, _ in batch])
            for (index, _), picture in zip(batch, drawn, strict=True):
                write_png(picture, pictures / f"{index}.png")
        lengths = [len(row) for row in codes.to("cpu").unbind()]
        return [{"tokens": n, "features": row} for n, row in zip(lengths, features, strict=True)]

    done = evaluate_items(_Prompts(asked), run, batch_size=batch_size, progress=progress)
    if not done.results:
        first = f"; {done.skipped[0].reason}" if done.skipped else ""
        raise ValueError(f"asked: none of {len(asked)} could be drawn{first}")
    rows = torch.stack([row["features"] for row in done.results.values()])
    room = max(0, min(GALLERY, GALLERY_VALUES // rows[0].numel()) - len({one.true for one in asked}))
    own = dict.fromkeys([*(one.true for one in asked), *(one.shown for one in asked if one.shown is not None)])
    more = [path for path in others if path not in own][:room]
    features, places = _encoded(tokenizer, image_processor, [*own, *more], batch_size)
    if not any(asked[index].true in places for index in done.results):
        raise ValueError(f"asked: none of the {len(asked)} true pictures could be read")
    # What is shown is compared with, too, but only the pictures asked for and the others make the gallery.
    gallery = [places[path] for path in dict.fromkeys([*(one.true for one in asked), *more]) if path in places]
    similar = rows.flatten(1) @ features.flatten(1).T
    found = []
    for row, (index, made) in zip(similar, done.results.items(), strict=True):
        one = asked[index]
        if one.true not in places:
            continue
        cosine = float(row[places[one.true]])
        before = float(row[places[one.shown]]) if one.shown in places else None
        picture = pictures / f"{index}.png" if draw is not None else None
        rank = int((row[gallery] > cosine).sum())
        found.append(Drawn(one, made["tokens"], cosine, rank, before, picture))
    return FolderDrawn(found, len(gallery), done.skipped)


class _Prompts:
    def __init__(self, asked: Sequence[Asked]) -> None:
        self.asked = asked

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        one = self.asked[index]
        return index, one.words if one.shown is None else [load_image(one.shown), one.words]

    def name(self, index: int) -> str:
        return f"{self.asked[index].words!r}"


def _directions(features: Tensor) -> Tensor:
    """(n, N, C) -> each patch at a length with which the product of two pictures is their mean cosine."""
    return (F.normalize(features.float(), dim=-1) / features.shape[1] ** 0.5).cpu()


def _encoded(
    tokenizer: Any, processor: Any, paths: Sequence[Path], batch_size: int
) -> tuple[Tensor, dict[Path, int]]:
    """The features of the pictures that can be read, and the place of each."""
    parts, places = [], dict[Path, int]()
    for begin in range(0, len(paths), batch_size):
        read = []
        for path in paths[begin : begin + batch_size]:
            try:
                read.append(processor.resize(load_image(path)))
            except ImageError:
                continue
            places[path] = len(places)
        if read:
            parts.append(_directions(tokenizer.encode_features(processor(read).to(tokenizer.device, tokenizer.dtype))))
    return torch.cat(parts) if parts else torch.zeros(0, 1, 1), places
