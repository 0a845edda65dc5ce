"""What a code means: the patches of pictures that chose it, and how alike these are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lavit.evaluation.folder_tokens import Resized
from lavit.evaluation.runner import Skipped, evaluate_items
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer

BLANK = 236
"""Grey of what lies outside of the picture, in a cut at its edge."""


@dataclass(frozen=True)
class Code:
    """A code and some of the patches that chose it.

    number: in the codebook. uses: how often it was chosen. share: of all tokens. cosine, distance: means of the vectors
    that chose it to the code, both on the unit sphere's scale; the distance is Euclidean. variance: of the pixels of
    the patches that chose it, about their mean patch, averaged over pixels and channels, in [0, 1]^2; NaN for one use.
    patches: (m, side, side, 3) uint8, each patch in the middle of what is around it.
    """

    number: int
    uses: int
    share: float
    cosine: float
    distance: float
    variance: float
    patches: np.ndarray = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        names = ("number", "uses", "share", "cosine", "distance", "variance")
        return {name: _finite(getattr(self, name)) for name in names}


@dataclass(frozen=True)
class CodePatches:
    """The codes of a folder of pictures.

    codes: the most used ones, the first one most. counts: (K,) uses of every code. images, tokens: how many were read.
    patch, context: pixels of a patch's side, and what is shown around it on each side. variance: of all kept patches
    together, as `Code.variance`; within: the mean of the codes' own, each weighed by its uses (less one). perplexity:
    of the codes.
    """

    codes: list[Code]
    counts: np.ndarray
    images: int
    tokens: int
    patch: int
    context: int
    variance: float
    within: float
    perplexity: float
    skipped: list[Skipped]

    @property
    def used(self) -> int:
        return int((self.counts > 0).sum())

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without the pixels of the patches."""
        return {
            "images": self.images,
            "tokens": self.tokens,
            "codes_in_codebook": len(self.counts),
            "codes_used": self.used,
            "codes_never_used": len(self.counts) - self.used,
            "perplexity": self.perplexity,
            "pixel_variance": _finite(self.variance),
            "pixel_variance_within_codes": _finite(self.within),
            "codes": [code.as_dict() for code in self.codes],
            "skipped": [item.as_dict() for item in self.skipped],
        }


def collect_code_patches(
    tokenizer: LaVITTokenizer,
    processor: LaVITImageProcessor,
    paths: Sequence[Path],
    *,
    codes: int = 64,
    patches: int = 16,
    context: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> CodePatches:
    """The deterministic tokens of image files, and for each of the ``codes`` most used codes up to ``patches`` patches
    that chose it, drawn evenly from all of them by the seed: the same ones for any batch size.

    context: pixels around a patch that are shown; None: half a patch. The pictures are read as the model sees them,
    and those that hold a patch that is shown are read again; what is kept meanwhile are sums over each code, and the
    places of its patches.
    Raises ValueError where not a single picture could be read.
    """
    gathered = _Gathered(tokenizer, patches, seed)

    def run(batch: list[tuple[int, Image.Image]]) -> list[None]:
        gathered.add(processor, batch)
        return [None] * len(batch)

    pictures = Resized(paths, processor)
    done = evaluate_items(pictures, run, batch_size=batch_size, progress=progress, workers=None)
    if not done.results:
        first = f"; {done.skipped[0].name}: {done.skipped[0].reason}" if done.skipped else ""
        raise ValueError(f"images: none of {len(paths)} could be used{first}")
    counts = gathered.counts
    order = np.argsort(-counts, kind="stable")[:codes]
    chosen = [int(number) for number in order if counts[number]]
    context = gathered.patch // 2 if context is None else context
    cut = _cut(pictures, {number: gathered.places[number] for number in chosen}, gathered, context)
    total = int(counts.sum())
    variances, within, overall = gathered.variances()
    found = [
        Code(
            number,
            int(counts[number]),
            float(counts[number] / total),
            float(gathered.cosines[number] / counts[number]),
            float(gathered.distances[number] / counts[number]),
            float(variances[number]),
            cut[number],
        )
        for number in chosen
    ]
    shares = counts[counts > 0] / max(total, 1)
    perplexity = float(np.exp(-(shares * np.log(shares)).sum())) if total else 0.0
    return CodePatches(
        found, counts, len(done.results), total, gathered.patch, context, overall, within, perplexity, done.skipped
    )


class _Gathered:
    """Sums over the patches of each code, and the places, (picture, patch), of those that are to be shown."""

    def __init__(self, tokenizer: LaVITTokenizer, most: int, seed: int) -> None:
        config = tokenizer.config
        self.tokenizer, self.most, self.seed = tokenizer, most, seed
        self.patch, self.side = config.patch_size, config.image_size // config.patch_size
        codes, pixels = config.num_codes, 3 * self.patch**2
        self.counts = np.zeros(codes, np.int64)
        self.cosines, self.distances, self.squares = (np.zeros(codes) for _ in range(3))
        self.sums = np.zeros((codes, pixels))
        self.places: list[list[tuple[int, int, int]]] = [[] for _ in range(codes)]
        # A patch is shown whose key, a hash of its place, is among the least of its code.
        self.bounds = np.full(codes, np.iinfo(np.uint64).max, np.uint64)

    def add(self, processor: LaVITImageProcessor, batch: list[tuple[int, Image.Image]]) -> None:
        """Nothing has changed where it raises."""
        tokenizer = self.tokenizer
        numbers, pictures = np.array([index for index, _ in batch]), [picture for _, picture in batch]
        pixels = processor(pictures).to(tokenizer.device, tokenizer.dtype)
        with torch.no_grad():
            features = tokenizer.encode_features(pixels)
            tokens = tokenizer.encode(features=features, deterministic=True)
            units = tokenizer.latents(features=features, deterministic=True).values
            codes = tokenizer.quantize.lookup(tokens.ids)
            cosines = torch.nn.functional.cosine_similarity(units, codes, dim=-1).cpu().numpy()
            distances = (units - codes).norm(dim=-1).cpu().numpy()
        ids = tokens.ids.cpu().numpy()
        rows, kept = tokens.keep.cpu().numpy().nonzero()
        usable = ids >= 0
        ids, rows, kept, cosines, distances = (x[usable] for x in (ids, rows, kept, cosines, distances))
        values = self.cut_patches(pictures)[rows, kept] / 255
        np.add.at(self.counts, ids, 1)
        np.add.at(self.cosines, ids, cosines)
        np.add.at(self.distances, ids, distances)
        np.add.at(self.sums, ids, values)
        np.add.at(self.squares, ids, np.square(values).sum(1))
        self._keep_places(ids, numbers[rows], kept)

    def cut_patches(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(n, N, pixels of a patch) float64 of pictures as the model sees them."""
        side, patch = self.side, self.patch
        arrays = np.stack([np.asarray(picture) for picture in pictures]).astype(np.float64)
        arrays = arrays.reshape(len(arrays), side, patch, side, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        return arrays.reshape(len(arrays), side * side, -1)

    def _keep_places(self, ids: np.ndarray, numbers: np.ndarray, kept: np.ndarray) -> None:
        keys = _scrambled(numbers.astype(np.uint64) * np.uint64(self.side**2) + kept.astype(np.uint64), self.seed)
        for place in np.flatnonzero(keys <= self.bounds[ids]):
            code = int(ids[place])
            own = self.places[code]
            own.append((int(keys[place]), int(numbers[place]), int(kept[place])))
            if len(own) >= 2 * self.most:
                self._prune(code)
        for code in np.unique(ids):
            self._prune(int(code))

    def _prune(self, code: int) -> None:
        own = sorted(self.places[code])[: self.most]
        self.places[code] = own
        if len(own) == self.most:
            self.bounds[code] = own[-1][0]

    def variances(self) -> tuple[np.ndarray, float, float]:
        """Of each code (NaN for fewer than two uses), the mean within codes, and of all patches together."""
        pixels = self.sums.shape[1]

        def scatter(count: Any, sums: np.ndarray, squares: Any) -> Any:
            """Sum of squared distances to the mean patch; rounding makes no negative one."""
            return np.maximum(squares - np.square(sums).sum(-1) / np.maximum(count, 1), 0)

        own = scatter(self.counts, self.sums, self.squares)
        freedom = self.counts - 1
        each = np.where(freedom > 0, own / np.maximum(freedom, 1) / pixels, np.nan)
        free, total = int(freedom[freedom > 0].sum()), int(self.counts.sum())
        within = float(own[freedom > 0].sum() / free / pixels) if free else float("nan")
        together = float(scatter(total, self.sums.sum(0), self.squares.sum()))
        return each, within, together / (total - 1) / pixels if total > 1 else float("nan")


def _cut(
    pictures: Resized, places: dict[int, list[tuple[int, int, int]]], of: _Gathered, context: int
) -> dict[int, np.ndarray]:
    """The patches at these places with what is around them; each picture is read once more."""
    side = of.patch + 2 * context
    wanted: dict[int, list[tuple[int, int, int]]] = {}
    for code, own in places.items():
        for slot, (_, number, patch) in enumerate(own):
            wanted.setdefault(number, []).append((code, slot, patch))
    cuts = {code: np.full((len(own), side, side, 3), BLANK, np.uint8) for code, own in places.items()}
    for number in sorted(wanted):
        picture = np.pad(np.asarray(pictures[number][1]), ((context,) * 2,) * 2 + ((0, 0),), constant_values=BLANK)
        for code, slot, patch in wanted[number]:
            row, column = (of.patch * place for place in divmod(patch, of.side))
            cuts[code][slot] = picture[row : row + side, column : column + side]
    return cuts


def _scrambled(index: np.ndarray, seed: int) -> np.ndarray:
    """uint64 -> uint64 that looks random (splitmix64): any two places are told apart whatever the order."""
    with np.errstate(over="ignore"):
        start = np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        x = index * np.uint64(0x9E3779B97F4A7C15) + start
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
