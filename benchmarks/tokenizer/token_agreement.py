"""What every mode of `for_inference` does to the tokens of a trained tokenizer, as Markdown: photographs and, for the
preset `small`, held-out scenes of the embedded world.

``python -m benchmarks.tokenizer.token_agreement MODEL``, the folder `tokenizer` that ``lavit quickstart`` saves.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from lavit.shapes.world import SIZE, ShapesWorld
from lavit.tokenizer import LaVITImageProcessor
from lavit.tokenizer.agreement import Agreement, measure, photographs

SCENES = 256


def row(name: str, images: str, found: Agreement | str) -> str:
    if isinstance(found, str):
        return f"| {name} | {images} | {found} | | | | |"
    rebuilt = "" if found.rebuilt is None else f"{found.rebuilt:.5f}"
    shares = f"{found.keep:.2%} | {found.ids:.2%} | {found.images:.1%}"
    return f"| {name} | {images} | {shares} | {found.features:.6f} | {rebuilt} |"


def main(argv: Sequence[str] | None = None) -> int:
    description = "What every mode does to tokens, as Markdown."
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenizer.token_agreement", description=description)
    parser.add_argument("model", help="a tokenizer's folder")
    arguments = parser.parse_args(argv)
    processor = LaVITImageProcessor.from_pretrained(arguments.model)
    sets: dict[str, torch.Tensor] = {"photographs": photographs(processor)}
    if processor.size == SIZE:
        sets["held-out scenes"] = processor(ShapesWorld(0, "test").scenes(SCENES).images)
    print("| mode | images | keep | ids | whole images | cosine | cosine, rebuilt |\n|---|---|---|---|---|---|---|")
    for name, images in sets.items():
        for mode, found in measure(arguments.model, images):
            print(row(mode, f"{len(images)} {name}", found), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
