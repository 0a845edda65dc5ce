"""``lavit tokenize``: images to tokens, and pictures of the patches that were kept."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lavit.commands import outputs
from lavit.commands.model_folders import find_tokenizer
from lavit.commands.options import add_encoder, add_machine, add_workers, check_at_least, command_parser

MAPS = (*outputs.PICTURES, ".pdf")

DESCRIPTION = """Turn images into tokens. Files of any usual format, and folders (all images below them).

The selection is deterministic (what the selector prefers) unless --sample or --seed is given. The tokens of an image
depend on the model, its pixels and the seed, not on the other images of the call."""

EPILOG = """--json: one object with "images": for each "file", "size" [width, height] as read (upright), "grid" [rows,
columns], "tokens", "ids" and "kept" [[row, column], ...], both in raster order; and "skipped": "file", "reason".
A name that ends in .jsonl gets the same as lines: the model and the seed, then every image in its place, also those
that were skipped.
--map: for one image its map, for several one sheet of small maps (the first 400).
An image that cannot be read is named and left out. Exit code 0; 1 if some were left out; 2 if all were, or on an error.
"""


def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    find_tokenizer(options.model)

    from lavit.commands.tokenize_run import run  # slow to import

    return run(options)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("tokenize", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("images", metavar="IMAGE", nargs="+", help="an image file or a folder of them")
    add("--model", metavar="DIR", help="folder of a tokenizer, or of a language or pixel model with one in it")
    add("--json", metavar="F", help="write the tokens to this file instead of a table; - for the standard output")
    add("--map", metavar="F", help="write a picture of the kept patches to this file (.png, .jpg, .webp, .pdf)")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--seed", type=int, metavar="S", help="sample the selection, repeatably")
    choice.add_argument("--sample", action="store_true", help="sample the selection with a new seed (told by --json)")
    add_machine(parser, 16)
    add_workers(parser)
    add_encoder(parser)
    options = parser.parse_args(argv)
    if options.model is None:
        raise ValueError("--model DIR is needed: the folder of a tokenizer; `lavit quickstart` makes one")
    check_at_least(options, batch_size=1, workers=0)
    outputs.check_file("--json", options.json)
    outputs.check_file("--map", options.map)
    if options.map is not None:
        outputs.check_picture("--map", options.map, MAPS)
    return options
