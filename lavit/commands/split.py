"""``lavit split``: a folder of images, captioned or not, as one to train on and one held out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lavit.commands.options import command_parser
from lavit.data.split import check_share
from lavit.data.split_folder import HELD_OUT, TRAIN, Parts, split_folder

DESCRIPTION = """Make two folders of one: OUT/train and OUT/held-out, of the same form.

Which images are held out follows from their names alone (a hash of the path below FOLDER or FOLDER/images): it is the
same on every machine and for images that were there before others came, and the same as what
`lavit train ... --data FOLDER --validation-share S` holds out. Captions, questions and answers go with their image."""

EPILOG = """FOLDER: images at any depth; or images/ with captions.json and, where they are there, questions.json,
answers.json, edits.jsonl. An edit needs both of its images on one side; how many are lost is told. text.jsonl and
text.txt go with train. Other files are left where they are, images beside images/ too, though `lavit train tokenizer`
and `pixels` read every image below their --data FOLDER. A captions.json of Karpathy's has splits of its own: --held-out
says which of them are held out, instead of --share; an image without a split is in neither folder.
Exit code 0; 1 if entries could not be used, which are named and in neither folder; 2 on an error.
"""

SHOWN = ("images", "captions", "questions", "edits", "texts")


def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    parts = split_folder(
        Path(options.folder),
        Path(options.output),
        share=options.share or 0.0,
        seed=options.seed,
        splits=None if options.held_out is None else frozenset(options.held_out.split(",")),
        link=options.link,
    )
    _tell(parts, Path(options.output))
    return 1 if parts.bad else 0


def _tell(parts: Parts, output: Path) -> None:
    there = [name for name in SHOWN if any(parts.counts[side][name] for side in (TRAIN, HELD_OUT))]
    width = len(str(output / HELD_OUT))
    for side in (TRAIN, HELD_OUT):
        counts = "  ".join(f"{parts.counts[side][name]} {name}" for name in there)
        print(f"{str(output / side):<{width}}  {counts}")
    if "edits" in there or parts.lost:
        print(f"{parts.lost} edits are lost: one of their images is held out, the other is not")
    if parts.bad:
        print(f"{len(parts.bad)} entries cannot be used and were left out:")
        for name, reason in parts.bad[:20]:
            print(f"  {name}: {reason}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("split", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="the folder to divide; it stays as it is")
    add("--share", type=float, metavar="S", help="share of the images to hold out, such as 0.1")
    add("--held-out", metavar="NAMES", help="of Karpathy's captions the splits to hold out, such as val,test")
    add("--output", required=True, metavar="OUT", help="folder for train/ and held-out/; must not be there")
    add("--seed", type=int, default=0, metavar="N", help="another number, another division; training's is 0 [0]")
    add("--link", choices=("hard", "symbolic", "copy"), default="hard", help="how the image files get there [hard]")
    options = parser.parse_args(argv)
    if (options.share is None) == (options.held_out is None):
        raise ValueError("--share S is needed, the share of the images to hold out (or --held-out, of Karpathy's file)")
    if options.share is not None:
        check_share("--share", options.share)
    if not -(2**127) <= options.seed < 2**127:
        raise ValueError(f"--seed: expected a number of at most 127 bits, got {options.seed}")
    return options
