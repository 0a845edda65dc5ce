"""``lavit quickstart``: the words of the command."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lavit import threads
from lavit.quickstart.config import QuickstartConfig


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="lavit quickstart",
        description="Train a small dynamic tokenizer here and now, tokenize real photographs with it, teach a small "
        "language model to caption images, to answer questions about them and to write images as tokens, and a small "
        "U-Net to paint these, and write a report. Needs no data, network or GPU; takes minutes on two CPU cores.",
    )
    parser.add_argument("--output", type=Path, default=Path("quickstart"), help="folder to write [quickstart]")
    parser.add_argument("--seed", type=_seed, default=0, help="of the scenes, the weights and the noise [0]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch [chosen from the CPUs]")
    parser.add_argument(
        "--fast", action="store_true", help="a miniature run of seconds that learns next to nothing: does it work here?"
    )
    parser.add_argument(
        "--fixed-length",
        action="store_true",
        help="a tokenizer that gives every image as many tokens, the keep rate times the patches, for comparison",
    )
    parser.add_argument("--no-language", action="store_true", help="without the language model")
    parser.add_argument("--no-pixels", action="store_true", help="without the U-Net that paints images from tokens")
    options = parser.parse_args(argv)
    if options.output.exists() and not options.output.is_dir():
        parser.error(f"--output: expected a folder, got the file {options.output}")

    from transformers.utils.logging import disable_progress_bar

    from lavit.quickstart.run import run_quickstart

    make = QuickstartConfig.fast if options.fast else QuickstartConfig
    words = [] if argv is None else list(argv)
    disable_progress_bar()  # transformers would draw one for the single file that is saved
    config = make(
        output=options.output,
        seed=options.seed,
        device=options.device,
        length="fixed" if options.fixed_length else "dynamic",
        language=not options.no_language,
        pixels=not options.no_pixels,
    )
    choice = threads.choose(options.threads, measure=not options.fast)
    print(choice, flush=True)
    with threads.on(choice.threads):
        run_quickstart(
            config,
            say=lambda line: print(line, flush=True),
            command=shlex.join(["lavit", "quickstart", *words]),
        )
    return 0


def _seed(text: str) -> int:
    with suppress(ValueError):
        if 0 <= (value := int(text)) < 2**31:
            return value
    raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {2**31 - 1}, got {text}")
