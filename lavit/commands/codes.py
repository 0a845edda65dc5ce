"""``lavit codes``: what a code means, by the patches of a folder's pictures that chose it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lavit.commands import outputs
from lavit.commands.model_folders import find_tokenizer
from lavit.commands.options import add_machine, check_at_least, command_parser

CODES, PATCHES = 64, 16

DESCRIPTION = """Show what the codes of a tokenizer mean: for each of the most used ones the patches that chose it, cut
from the pictures of a folder as the model sees them, with what is around them. Beside them: how often the code is used,
how near the vectors are that chose it, and whether its patches look alike: the variance of their pixels within the code
against that of all patches."""

EPILOG = """--output: a page (HTML) that needs no other file. --picture: the same as one picture.
--json: "codes_used", "codes_never_used", "perplexity", "pixel_variance" of all kept patches and
"pixel_variance_within_codes"; and "codes", for each "number", "uses", "share", "cosine", "distance", "variance".
A picture that cannot be read is named and left out. Exit code 0; 1 if some were left out; 2 if all were, or on an
error.
"""


def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    find_tokenizer(options.model)

    from lavit.commands.codes_run import run  # slow to import

    return run(options)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("codes", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="pictures, at any depth")
    add("--model", metavar="DIR", help="folder of a tokenizer, or of a language or pixel model with one in it")
    add("--output", metavar="F", help="the page to write [codes.html, where nothing else is asked for]")
    add("--picture", metavar="F", help="draw the codes as a picture (.png, .jpg, .jpeg, .webp), too")
    add("--json", metavar="F", help="write the figures of the codes to this file, too; - for the standard output")
    add("--codes", type=int, default=CODES, metavar="N", help=f"show the N most used codes [{CODES}]")
    add("--patches", type=int, default=PATCHES, metavar="M", help=f"of each code [{PATCHES}]")
    add("--context", type=int, metavar="P", help="pixels to show around a patch [half a patch]")
    add("--limit", type=int, metavar="N", help="read at most N pictures, drawn by the seed; else all")
    add("--seed", type=int, default=0, metavar="S", help="of what is drawn: pictures, patches [0]")
    add_machine(parser, 32)
    options = parser.parse_args(argv)
    if options.model is None:
        raise ValueError("--model DIR is needed: the folder of a tokenizer; `lavit quickstart` makes one")
    check_at_least(options, codes=1, patches=1, context=0, limit=1, seed=0, batch_size=1)
    if options.output is None and options.picture is None and options.json is None:
        options.output = "codes.html"
    for name in ("output", "picture", "json"):
        outputs.check_file(f"--{name}", getattr(options, name))
    if options.output == "-":
        raise ValueError("--output: expected a file to write, got -")
    if options.picture is not None:
        outputs.check_picture("--picture", options.picture)
    return options
