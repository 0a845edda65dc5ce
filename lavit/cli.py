"""The command ``lavit``: finds what was asked for, runs it, and turns expected errors into one line.

A command is a function ``main(argv) -> exit code or None`` in its own module, imported when it is called: ``lavit
--help`` loads no model code.

Exit codes: 0; 1 part of the work could not be done; 2 wrong use or wrong input; 128 + n stopped by signal n.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lavit import __version__, threads


@dataclass(frozen=True)
class Command:
    """target: "module:function"."""

    target: str
    help: str


Commands = dict[str, "Command | Commands"]

TRAIN: Commands = {
    "encoder": Command("lavit.training.encoder.command:main", "before stage 1: an image encoder of one's own"),
    "tokenizer": Command(
        "lavit.training.tokenizer.command:main", "stage 1: the dynamic visual tokenizer, from images alone"
    ),
    "language": Command(
        "lavit.training.language.command:main", "stage 2: the language model that reads and writes images"
    ),
    "pixels": Command("lavit.training.pixels.command:main", "stage 3: the U-Net that draws images from tokens"),
}
COMMANDS: Commands = {
    "quickstart": Command("lavit.quickstart:main", "train small models of all stages here and now, and report on them"),
    "tokenize": Command("lavit.commands.tokenize:main", "images to tokens, and pictures of the patches kept"),
    "reconstruct": Command("lavit.commands.reconstruct:main", "images to tokens and back to pixels"),
    "generate": Command("lavit.commands.generate:main", "pixels for a prompt of text and images"),
    "convert": Command("lavit.commands.convert:main", "the released LaVIT's folder as one of this library's own"),
    "split": Command("lavit.commands.split:main", "a folder of images as one to train on and one held out"),
    "train": TRAIN,
    "evaluate": Command("lavit.commands.evaluate:main", "captions, answers and drawn images of a model, judged"),
    "report": Command("lavit.commands.report:main", "a page of what a model does with the pictures of a folder"),
    "codes": Command("lavit.commands.codes:main", "what each code means: the patches of a folder that chose it"),
    "info": Command("lavit.info:main", "versions, devices, and which implementation each operation takes and why"),
}
GROUPS = {"train": "train a model: " + ", ".join(TRAIN)}

NOISE = {
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects",
    "torch.utils._pytree": "Calling register_constant() on Enum",
    "transformers.utils.generic": "`past_key_values`/`cache_params` are deprecated",
}
"""Logger and words of what packages say of each other, or of a name that they have changed: of classes of torchao that
nothing here uses, whenever diffusers is imported where torchao is; of what transformers calls its caches."""
RENAMED = ("`past_key_values` is deprecated", "`broadcast_buffers` is deprecated")
"""Of FutureWarnings: how transformers and torch call what they still take."""
BARS = "HF_HUB_DISABLE_PROGRESS_BARS"
"""Of transformers too, which draws one for each file that it reads or writes: "Loading weights", for one.
"""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception: what is open is closed, and what is half done is taken away."""

    signal = int(signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    threads.prepare()
    try:
        with without_noise(), _terminable():
            code = _run(arguments, COMMANDS, "lavit", GROUPS)
        sys.stdout.flush()
        return code
    except Terminated:
        print("lavit: terminated", file=sys.stderr)
        return 128 + Terminated.signal
    except KeyboardInterrupt:
        print("lavit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`lavit ... | head`). Nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("LAVIT_DEBUG", "0") not in ("", "0"):
            raise
        print(f"lavit: error: {describe(error)}", file=sys.stderr)
        return 2


@contextmanager
def without_noise() -> Iterator[None]:
    """Inside, packages do not say what helps nobody who uses a command (`NOISE`, `RENAMED`), and draw no bars.
    Afterwards all is as it was before."""
    quiet = [logger for logger in map(logging.getLogger, NOISE) if _worth_saying not in logger.filters]
    own = BARS not in os.environ
    for logger in quiet:
        logger.addFilter(_worth_saying)
    os.environ.setdefault(BARS, "1")
    try:
        with warnings.catch_warnings():
            for words in RENAMED:
                warnings.filterwarnings("ignore", f".*{words}", FutureWarning)
            yield
    finally:
        for logger in quiet:
            logger.removeFilter(_worth_saying)
        if own:
            os.environ.pop(BARS, None)


def _worth_saying(record: logging.LogRecord) -> bool:
    return NOISE[record.name] not in record.getMessage()


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises Terminated, unless the caller has made something else of it."""
    own = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if own:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if own:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def describe(error: Exception) -> str:
    """One line about an error, for people."""
    if isinstance(error, OSError) and error.strerror:
        return ": ".join([*(str(f) for f in (error.filename, error.filename2) if f is not None), error.strerror])
    return " ".join(str(error).split()) or type(error).__name__


def _run(arguments: list[str], commands: Commands, prog: str, groups: dict[str, str]) -> int:
    parser = _parser(commands, prog, groups)
    # Only what stands before the command's name is ours.
    own = next((n for n, a in enumerate(arguments) if not a.startswith("-")), len(arguments))
    parser.parse_args(arguments[:own])
    if own == len(arguments):
        parser.print_help(sys.stderr)
        return 2
    name, rest = arguments[own], arguments[own + 1 :]
    command = commands.get(name)
    if command is None:
        near = difflib.get_close_matches(name, commands, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{prog}: there is no command {name!r}{hint} (there are: {', '.join(commands)})")
    if isinstance(command, dict):
        return _run(rest, command, f"{prog} {name}", {})
    module, function = command.target.split(":")
    return getattr(import_module(module), function)(rest) or 0


def _parser(commands: Commands, prog: str, groups: dict[str, str]) -> argparse.ArgumentParser:
    width = max(map(len, commands)) + 2
    lines = [f"  {n:<{width}}{c.help if isinstance(c, Command) else groups[n]}" for n, c in commands.items()]
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [-h] {'[--version] ' if prog == 'lavit' else ''}COMMAND ...",
        description="Images as a variable number of discrete tokens.\n\ncommands:\n" + "\n".join(lines),
        epilog=f"`{prog} COMMAND --help` tells about one. LAVIT_DEBUG=1 shows the traceback of an error.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if prog == "lavit":
        parser.add_argument("--version", action="version", version=f"lavit {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
