"""What all commands share of their options: the parser, the device, bounds.

Nothing that is slow to import is imported here, nor by what reads the words of a command: `--help` and a wrong word
are answered at once.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("float8", "int8", "int8-weight-only")
"""As in `lavit.tokenizer.quantization`, which is slow to import."""


def command_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The parser of ``lavit NAME``; both texts are shown as they stand."""
    return argparse.ArgumentParser(
        prog=f"lavit {name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_machine(parser: argparse.ArgumentParser, batch_size: int, what: str = "images at a time") -> None:
    """--batch-size and --device."""
    parser.add_argument("--batch-size", type=int, default=batch_size, metavar="B", help=f"{what} [{batch_size}]")
    parser.add_argument(
        "--device", default="auto", metavar="D", help="cpu, cuda, cuda:1, ...; a GPU is taken if there is one"
    )


def add_encoder(parser: argparse.ArgumentParser, compile: str = "compile the encoder: up to a minute at first") -> None:
    """--dtype, --quantization and --compile, of the frozen encoder that reads images. compile: what the last does."""
    add = parser.add_argument_group("the frozen encoder, which reads images; else as it is stored").add_argument
    add("--dtype", choices=DTYPES, help="of its weights; bfloat16 is fast where the processor has it")
    add("--quantization", choices=QUANTIZATIONS, help="of its weights; float8 on a GPU, with --dtype bfloat16")
    help = f"{compile}, with --dtype bfloat16 on a CPU seconds; pays where hundreds of images follow"
    add("--compile", action="store_true", help=help)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """--workers; see `pick_workers`."""
    help = "threads that read images ahead of their use; 0: none [one for each core]"
    parser.add_argument("--workers", type=int, metavar="N", help=help)


def pick_workers(asked: int | None) -> int:
    """As many as asked for, else as there are cores for this process."""
    if asked is not None:
        return asked
    from lavit.data.prefetch import cores

    return cores()


def only_given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def pick_device(name: str) -> torch.device:
    """The one of this name; auto: a GPU if there is one. ValueError for one that cannot be used."""
    import torch

    from lavit.training.engine import distributed

    try:
        device = distributed.pick_device(name)
        torch.empty(0, device=device)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {name} cannot be used ({str(error).splitlines()[0]})") from error
    return device


def check_at_least(options: argparse.Namespace, **least: float) -> None:
    """ValueError for an option that was given, and is less or not finite."""
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and not bound <= value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {bound}, got {value}")
