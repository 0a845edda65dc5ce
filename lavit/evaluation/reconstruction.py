"""Images to tokens and back to pixels, beside the images: how alike they are, and how the tokens are spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from lavit.data.atomic_write import atomic_write
from lavit.data.images import BLACKENED, load_image
from lavit.evaluation.frechet import distance
from lavit.evaluation.journal import TaskJournal
from lavit.evaluation.perceptual import LPIPS, psnr, ssim
from lavit.evaluation.picture_sets import Files, as_tensor, picture_statistics
from lavit.evaluation.runner import evaluate_items
from lavit.evaluation.tasks import Progress, Shown, TaskReport
from lavit.kernels import Ragged
from lavit.training.engine import distributed

Draw = Callable[[Ragged, Sequence[int], Sequence[str]], Sequence[Image.Image]]
"""(tokens of n images, a seed and a name for each) -> n images, with BLACKENED in the ``info`` of those that are."""


class Alike(Protocol):
    """`lavit.evaluation.ClipScorer` is one."""

    def __call__(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> torch.Tensor: ...
    def similarities(self, first: Sequence[Image.Image], second: Sequence[Image.Image]) -> torch.Tensor: ...


@dataclass(frozen=True)
class Judges:
    """The networks that judge, each None where it is not there; ``lacking``: metric -> why."""

    inception: Any = None
    lpips: LPIPS | None = None
    clip: Alike | None = None
    lacking: dict[str, str] = field(default_factory=dict)


def token_use(ids: Sequence[Sequence[int]], num_codes: int) -> dict[str, float]:
    """How images spend their tokens: their mean, least and largest number, the codes used by any of them, and the
    perplexity of the codes, exp of the entropy of how often each is used: 1 for one code, K for all alike."""
    lengths = [len(row) for row in ids]
    counts = np.bincount(np.concatenate([np.asarray(row, dtype=np.int64) for row in ids]), minlength=num_codes)
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return {
        "tokens": float(np.mean(lengths)),
        "fewest_tokens": min(lengths),
        "most_tokens": max(lengths),
        "codes_used": int((counts > 0).sum()),
        "codes": num_codes,
        "perplexity": float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0,
    }


def reconstruct_files(
    tokenizer: Any,
    processor: Any,
    draw: Draw,
    paths: Sequence[Path],
    pictures: Path,
    judges: Judges,
    *,
    seed_of: Callable[[int], int],
    batch_size: int = 16,
    progress: Progress | None = None,
    kept: TaskJournal | None = None,
) -> TaskReport:
    """Image files drawn again from their deterministic tokens. Each is compared in the size that is drawn, to which the
    image is brought by a bicubic filter from what the tokenizer sees of it.

    pictures: an existing folder, which gets what is drawn as 0.png, 1.png, ... by the number of the file.
    seed_of: the noise of a file's number. Raises ValueError where not a single image could be used.
    """
    device = next(tokenizer.parameters()).device

    class Originals(Files):
        def __getitem__(self, index: int) -> Any:
            return index, load_image(self.paths[index])

    def run(batch: list[tuple[int, Image.Image]]) -> list[dict[str, Any]]:
        pixels = torch.cat([processor(image) for _, image in batch]).to(device, tokenizer.dtype)
        tokens = tokenizer.encode(pixels, deterministic=True).ragged()
        names = [str(paths[index]) for index, _ in batch]
        drawn = list(draw(tokens, [seed_of(index) for index, _ in batch], names))
        true = [_as_drawn(processor.seen(image), again) for (_, image), again in zip(batch, drawn, strict=True)]
        found: list[dict[str, Any]] = [
            {"psnr": psnr(np.asarray(one), np.asarray(two)), "ssim": ssim(np.asarray(one), np.asarray(two))}
            for one, two in zip(true, drawn, strict=True)
        ]
        if judges.lpips is not None:
            both = (torch.stack([as_tensor(image) for image in images]) for images in (true, drawn))
            for row, value in zip(found, judges.lpips(*both).tolist(), strict=True):
                row["lpips"] = value
        if judges.clip is not None:
            for row, value in zip(found, judges.clip.similarities(true, drawn).tolist(), strict=True):
                row["clip"] = value
        for row, (index, _), again, ids in zip(found, batch, drawn, tokens.unbind(), strict=True):
            write_png(again, pictures / f"{index}.png")
            row |= {"ids": ids.tolist(), "number": index, **blackened(again)}
        return found

    done = evaluate_items(Originals(paths), run, batch_size=batch_size, progress=progress, kept=kept, workers=None)
    rows = list(done.results.values())
    if not rows:
        first = f"; {done.skipped[0].name}: {done.skipped[0].reason}" if done.skipped else ""
        raise ValueError(f"images: none of {len(paths)} could be used{first}")
    score: dict[str, Any] = {"figures": {}, "skipped": {}}
    for name, why in judges.lacking.items():
        score["skipped"][{"FID": "rFID", "CLIP": "CLIP similarity"}.get(name, name)] = why
    score["figures"]["rFID"] = _distance(judges, processor, paths, done.results, pictures, batch_size, score["skipped"])
    for name, label in (("psnr", "PSNR"), ("ssim", "SSIM"), ("lpips", "LPIPS"), ("clip", "CLIP similarity")):
        if name in rows[0]:
            score["figures"][label] = float(np.mean([row[name] for row in rows]))
    score["figures"] = {name: value for name, value in score["figures"].items() if value is not None}
    score[BLACKENED] = sum(BLACKENED in row for row in rows)
    score["use"] = token_use([row["ids"] for row in rows], tokenizer.config.num_codes)
    results: list[dict[str, Any]] = [
        {"file": str(paths[i]), "drawn": str(pictures / f"{i}.png"), "tokens": len(row["ids"])}
        | {name: row[name] for name in ("psnr", "ssim", "lpips", "clip", BLACKENED) if name in row}
        for i, row in done.results.items()
    ]
    if distributed.rank() != 0:
        return TaskReport(None, results, done.skipped)
    # LPIPS is nearest to what people see; more is better on a sheet.
    each = [-row["lpips"] if "lpips" in row else row["psnr"] for row in rows]
    shown = [Shown([row["file"], row["drawn"]], value, *_said(row)) for row, value in zip(results, each, strict=True)]
    return TaskReport(score, results, done.skipped, {}, item_scores=each, shown=shown)


def blackened(image: Image.Image) -> dict[str, bool]:
    """What an item's row says of it."""
    return {BLACKENED: True} if image.info.get(BLACKENED) else {}


def write_png(image: Image.Image, path: Path) -> None:
    with atomic_write(path) as file:
        image.save(file, "PNG")


def _as_drawn(image: Image.Image, drawn: Image.Image) -> Image.Image:
    return image if image.size == drawn.size else image.resize(drawn.size, Image.Resampling.BICUBIC)


def _distance(
    judges: Judges,
    processor: Any,
    paths: Sequence[Path],
    results: dict[int, dict[str, Any]],
    pictures: Path,
    batch_size: int,
    skipped: dict[str, str],
) -> float | None:
    if judges.inception is None:
        return None
    if len(results) < 2:
        skipped["rFID"] = "needs at least two images"
        return None
    numbers = list(results)
    drawn = [pictures / f"{number}.png" for number in numbers]

    def as_drawn(place: int, image: Image.Image) -> Image.Image:
        with Image.open(drawn[place]) as again:
            return _as_drawn(processor.seen(image), again)

    true, lost = picture_statistics(
        judges.inception, Files([paths[number] for number in numbers], as_drawn), batch_size=batch_size
    )
    made, gone = picture_statistics(judges.inception, Files(drawn), batch_size=batch_size)
    if lost or gone:  # they could be read a moment ago
        raise ValueError(f"images: {(lost + gone)[0].name} could not be read again: {(lost + gone)[0].reason}")
    return distance(true, made)


def _said(row: dict[str, Any]) -> tuple[str, list[str]]:
    """What the score is, and the other figures."""
    figures = [f"PSNR {row['psnr']:.1f} dB", f"SSIM {row['ssim']:.3f}"]
    figures = [f"LPIPS {row['lpips']:.3f}", *figures] if "lpips" in row else figures
    return figures[0], [", ".join([*figures[1:], f"{row['tokens']} tokens"])]
