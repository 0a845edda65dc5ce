"""What a faster mode does to the tokens: `record` what a tokenizer makes of images, and `compare` two records.

``python -m lavit.tokenizer.agreement MODEL [IMAGE ...]`` prints it for every mode that runs here, beside float32.
Without images: of the photographs that ship with scikit-image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lavit.data.images import load_image
from lavit.data.photographs import find_photographs
from lavit.tokenizer.model import LaVITTokenizer
from lavit.tokenizer.processing import LaVITImageProcessor

MODES: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, compiled": {"dtype": "bfloat16", "compile": True},
    "bfloat16, merger too": {"dtype": "bfloat16", "merger_dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "int8, compiled": {"dtype": "bfloat16", "quantization": "int8", "compile": True},
    "int8-weight-only": {"dtype": "bfloat16", "quantization": "int8-weight-only"},
    "float8": {"dtype": "bfloat16", "quantization": "float8"},
}


@dataclass(frozen=True)
class Record:
    """Of B images, on the CPU. features: (B, N, C) of the encoder. keep: (B, N). ids: (T,) of the kept patches.

    rebuilt: (B, N, C) features as the decoder rebuilds them from the tokens, or None without a fitting decoder.
    """

    features: Tensor
    keep: Tensor
    ids: Tensor
    rebuilt: Tensor | None


@dataclass(frozen=True)
class Agreement:
    """keep: share of patches with the same decision. ids: of the patches that both keep, share with the same code.

    features, rebuilt: mean cosine of the encoder's and of the rebuilt features, patch by patch. images: share of images
    all of whose tokens are the same.
    """

    keep: float
    ids: float
    images: float
    features: float
    rebuilt: float | None

    def __str__(self) -> str:
        rebuilt = "" if self.rebuilt is None else f", of rebuilt ones {self.rebuilt:.5f}"
        return (
            f"keep {self.keep:.2%}, ids {self.ids:.2%}, whole images {self.images:.2%}, "
            f"cosine of features {self.features:.6f}{rebuilt}"
        )


@torch.no_grad()
def record(
    model: LaVITTokenizer, images: Tensor, *, seeds: Sequence[int] | None = None, batch: int = 4, decode: bool = True
) -> Record:
    """images (B, 3, S, S), normalised. seeds: (B,) of the selection; None decides without noise."""
    features, keep, ids, rebuilt = [], [], [], []
    for begin in range(0, len(images), batch):
        part = slice(begin, begin + batch)
        found = model.encode_features(images[part].to(model.device))
        drawn: dict[str, Any] = {"deterministic": True} if seeds is None else {"seeds": seeds[part]}
        tokens = model.encode(features=found, **drawn)
        features.append(found.float().cpu())
        keep.append(tokens.keep.cpu())
        ids.append(tokens.ids.cpu())
        if decode:
            rebuilt.append(model.decode(tokens).float().cpu())
    return Record(torch.cat(features), torch.cat(keep), torch.cat(ids), torch.cat(rebuilt) if decode else None)


def compare(exact: Record, other: Record) -> Agreement:
    """How far ``other`` keeps to ``exact``, of the same images with the same seeds."""
    ids = [torch.full(one.keep.shape, -1).masked_scatter(one.keep, one.ids) for one in (exact, other)]
    both, same = exact.keep & other.keep, ids[0] == ids[1]
    rebuilt = None
    if exact.rebuilt is not None and other.rebuilt is not None:
        rebuilt = _cosine(exact.rebuilt, other.rebuilt)
    return Agreement(
        keep=float((exact.keep == other.keep).double().mean()),
        ids=float(same[both].double().mean()) if both.any() else 1.0,
        images=float(same.all(dim=1).double().mean()),
        features=_cosine(exact.features, other.features),
        rebuilt=rebuilt,
    )


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.double(), b.double(), dim=-1).mean())


def measure(
    folder: str | Path, images: Tensor, modes: dict[str, dict[str, Any]] = MODES
) -> Iterator[tuple[str, Agreement | str]]:
    """(mode, how it agrees with float32, or why it does not run here), each tokenizer loaded anew from ``folder``."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seeds = list(range(len(images)))
    exact = record(LaVITTokenizer.from_pretrained(folder, dtype=torch.float32).to(device).eval(), images, seeds=seeds)
    for name, mode in modes.items():
        model = LaVITTokenizer.from_pretrained(folder, dtype=torch.float32).to(device)
        try:
            model.for_inference(**mode)
        except (ValueError, ImportError) as error:
            yield name, f"not here: {error}"
            continue
        yield name, compare(exact, record(model, images, seeds=seeds))


def photographs(processor: LaVITImageProcessor, files: Sequence[Path] = ()) -> Tensor:
    """(B, 3, S, S) of files, or of the photographs that are installed here.

    FileNotFoundError where none are, ImageError for a file that is no image.
    """
    files = files or [photograph.path for photograph in find_photographs()]
    if not files:
        raise FileNotFoundError("no images given, and no photographs ship with what is installed")
    return torch.cat([processor(load_image(file)) for file in files])


def main(argv: Sequence[str] | None = None) -> int:
    description = "What every mode of for_inference does to tokens, beside float32."
    parser = argparse.ArgumentParser(prog="python -m lavit.tokenizer.agreement", description=description)
    parser.add_argument("model", help="a tokenizer's folder, as save_pretrained writes it")
    parser.add_argument("images", nargs="*", type=Path, help="files [the photographs of scikit-image]")
    arguments = parser.parse_args(argv)
    try:
        images = photographs(LaVITImageProcessor.from_pretrained(arguments.model), arguments.images)
        for name, told in measure(arguments.model, images):
            print(f"{name}: {told}")
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
