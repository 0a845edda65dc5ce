"""``lavit convert``: the released LaVIT's folder as one of this library's own."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lavit.commands.options import DTYPES, check_at_least, command_parser
from lavit.released.kinds import KINDS

if TYPE_CHECKING:
    from lavit.tokenizer import LaVITTokenizerConfig

DESCRIPTION = """Write the released LaVIT (rain1011/LaVIT-7B-v2, downloaded) as a folder of this library: safetensors,
configurations, processors. Every command takes it as --model, and everything in it starts by from_pretrained:

  lavit convert LaVIT-7B-v2 lavit-7b
  lavit generate "a red bus in the rain" --model lavit-7b --out bus.png"""

EPILOG = """OUT: the LaVIT and its processor; `pixels`: the high-res pipeline, or the low-res one where that is all that
there is; `pixels_lowres`: the low-res one beside a high-res one (--pixels OUT/pixels_lowres takes it).
OUT is written whole or not at all, and never over anything. Parts are read one after the other: what is needed is the
memory of the largest. Tensors of the release that it does not use itself are named.
"""


def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    if not Path(options.release).is_dir():
        raise FileNotFoundError(f"there is no folder {options.release}")

    import torch

    from lavit.released.convert import convert_release

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    with _log():
        found = convert_release(
            options.release,
            options.out,
            kinds=None if options.kind == "all" else (options.kind,),
            config=_config(options.config),
            text_size=options.text_size,
            dtype=dtype,
            visual_dtype=getattr(torch, options.visual_dtype),
            safety_checker=not options.no_safety_checker,
        )
    what = "language model, tokenizer and processor" if found.has_language else "tokenizer and image processor"
    print(f"{options.out}: {what}")
    for kind, name in found.folders().items():
        print(f"{Path(options.out) / name}: pixels, {kind}")
    return 0


@contextmanager
def _log() -> Iterator[None]:
    """What the loaders log goes to the standard error; no progress bars of libraries."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    logger, handler = logging.getLogger("lavit.released"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("lavit: %(message)s"))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _config(path: str | None) -> LaVITTokenizerConfig | None:
    if path is None:
        return None

    from lavit.tokenizer import LaVITTokenizerConfig

    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
        return LaVITTokenizerConfig(**settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"--config: {path} holds no configuration of a tokenizer ({error})") from error


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("convert", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("release", metavar="RELEASED_DIR", help="the released folder, with visual_tokenizer/, language_model/, ...")
    add("out", metavar="OUT", help="a folder that is not there yet")
    add("--kind", choices=(*KINDS, "all"), default="all", help="pixel stages to convert [all that there are]")
    add("--dtype", choices=DTYPES, help="of the language model and of the pixels [as stored, and float32]")
    add("--visual-dtype", choices=DTYPES, default="float32", help="of the visual tokenizer [float32]")
    add("--no-safety-checker", action="store_true", help="pipelines that check no image, and say so")
    add("--config", metavar="F", help="JSON: sizes of another tokenizer in the same layout")
    add("--text-size", type=int, default=32000, metavar="N", help="text ids of the language model [32000]")
    options = parser.parse_args(argv)
    check_at_least(options, text_size=1)
    return options
