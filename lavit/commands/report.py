"""``lavit report``: a page of what a model does with the pictures of a folder."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from lavit.commands import outputs
from lavit.commands.model_folders import check_folder, find_tokenizer
from lavit.commands.options import add_machine, check_at_least, command_parser

LIMIT, DRAWN, SHOWN, EXTREMES = 256, 24, 12, 6

DESCRIPTION = """Write a page (HTML, one file) of what a model does with the pictures of a folder: token maps, tokens
against what there is to see, pictures drawn again from their tokens, captions, answers, pictures drawn from captions
and changed as asked, the worst and the best of each kind, and the curves of training runs.

MODEL is the folder of a tokenizer, of a language model (with what draws pixels in `pixels`, or by --pixels), or of a
pixel pipeline. FOLDER holds images/ and, where there are any, captions.json, questions.json with answers.json, and
edits.jsonl; or pictures alone. What the model cannot do, or the folder does not have, becomes a sentence that says
so."""

EPILOG = """The folder of a training run is shown by its curves, as MODEL as well as with --runs; what was measured on
held-out pictures stands on the axes of the same number in training.
A picture or entry that cannot be used is named and left out. Exit code 0; 1 if some were left out; 2 on an error.
"""


def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    try:
        find_tokenizer(options.model)
    except ValueError as error:
        raise ValueError(str(error).replace("--model", "MODEL", 1)) from None
    for run in options.runs:
        check_folder(run, "--runs")

    from lavit.commands.report_run import run as work  # slow to import

    return work(options, shlex.join(["lavit", "report", *argv]))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("report", DESCRIPTION, EPILOG)
    parser.usage = "lavit report MODEL --data FOLDER [--runs RUN ...] [--output report.html] [options below]"
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a tokenizer, a language model or a pixel pipeline")
    add("--data", metavar="FOLDER", help="of captioned pictures, or of pictures alone")
    add("--runs", metavar="RUN", nargs="+", default=[], help="folders of training runs, whose curves are shown")
    add("--output", default="report.html", metavar="F", help="the page to write [report.html]")
    add("--pixels", metavar="DIR", help="folder of a pixel pipeline; else MODEL itself, or `pixels` in it")
    add("--limit", type=int, default=LIMIT, metavar="N", help=f"pictures, drawn by the seed, and questions [{LIMIT}]")
    add("--drawn", type=int, default=DRAWN, metavar="N", help=f"at most N pictures are drawn of each kind [{DRAWN}]")
    add("--shown", type=int, default=SHOWN, metavar="N", help=f"items of each kind on the page [{SHOWN}]")
    help = f"of the worst and of the best of each kind [{EXTREMES}]"
    add("--extremes", type=int, default=EXTREMES, metavar="N", help=help)
    add("--seed", type=int, default=0, metavar="S", help="of what is drawn: the sample, the noise [0]")
    add_machine(parser, 16)

    add = parser.add_argument_group("captions and answers; else the model's own").add_argument
    add("--beams", type=int, metavar="N", help="of the search")
    add("--min-new", type=int, metavar="N", help="fewest tokens of a text")
    add("--max-new", type=int, metavar="N", help="most tokens of a text")

    add = parser.add_argument_group("pictures drawn; else the model's own").add_argument
    add("--guidance", type=float, metavar="G", help="of the tokens by the prompt")
    add("--top-k", type=int, metavar="K", help="likeliest codes to draw from")
    add("--steps", type=int, metavar="N", help="of denoising")
    add("--pixel-guidance", type=float, metavar="G", help="of the pixels by the tokens, 1 is off")
    options = parser.parse_args(argv)
    if options.data is None:
        raise ValueError("--data FOLDER is needed: the pictures that the report is of")
    check_at_least(options, limit=1, drawn=1, shown=1, extremes=1, seed=0, batch_size=1)
    check_at_least(options, beams=1, min_new=0, max_new=1, guidance=0, top_k=1, steps=1, pixel_guidance=0)
    if options.output == "-":
        raise ValueError("--output: expected a file to write, got -")
    outputs.check_file("--output", options.output)
    return options
