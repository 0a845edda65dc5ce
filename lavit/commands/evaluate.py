"""``lavit evaluate``: what a model says about images and draws for prompts, judged."""

from __future__ import annotations

from collections.abc import Sequence

from lavit.commands.evaluation_options import parse
from lavit.commands.model_folders import check_folder


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    check_folder(options.model, "--model")

    from lavit.commands.evaluate_run import run  # slow to import

    return run(options)
