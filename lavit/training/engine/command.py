"""``lavit train``: the words of its commands, read before anything of a model is imported, and how a run ends."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from lavit.training.engine import config as configuration
from lavit.training.engine.recipe import CONFIG_FILE, Recipe, check_folders

Config = TypeVar("Config", bound=Recipe)
Skipped = Sequence[tuple[str, str]]
"""(name, reason) of items that could not be used."""

USAGE = """
The settings come from the preset's recipe or, instead, from --config, then from --key value; the section may be left
out where one only has the name (--steps for --loop.steps). --resume goes on from the newest whole checkpoint in the
output folder, with the settings saved there; it deletes nothing, and refuses settings that give the checkpoint another
meaning, unless --allow-changes stands beside it. --overwrite begins anew and deletes what an earlier run left. Two runs
cannot use one folder at a time. A run under torchrun uses all its processes:
torchrun --nproc-per-node 8 -m lavit.cli train {name} --data FOLDER --output FOLDER
Ends with 0; with 1 when the loss stays NaN or Inf; with 128 + n when signal n stopped it (the checkpoint is written).

settings [default]:
"""


def run_command(
    name: str,
    argv: Sequence[str] | None,
    cls: type[Config],
    usage: str,
    target: str,
    folders: Sequence[str],
    tell: Callable[[Config, Any], tuple[Skipped, str, str]],
) -> int:
    """``lavit train NAME``; returns the exit code. ValueError and OSError for wrong use or input.

    usage: what the stage has of its own; what all have in common (USAGE) follows. target: "module:function" of the
    training, imported when the words are right; gets the configuration, progress, resume and overwrite. folders:
    settings that name folders which must be there. tell: of configuration and result, the items that could not be
    used, what they are ("images could not be read"), and the words that end a run.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "--help" in words or "-h" in words:
        print(usage + USAGE.format(name=name) + configuration.describe(cls))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config, flags = read_words(cls, words, f"runs/{name}")
    config.check_sources()
    check_folders(config, *folders)

    from lavit.training.engine import distributed
    from lavit.training.engine.loop import TrainingDiverged

    module, function = target.split(":")
    train_stage = getattr(import_module(module), function)
    try:
        result = train_stage(config, progress=_print, **{name: name in flags for name in FLAGS})
    except TrainingDiverged as problem:
        print(f"lavit train {name}: {problem}", file=sys.stderr)
        return 1
    if distributed.launched_rank() == 0:
        _print_end(config, result, *tell(config, result))
    return 0 if result.stopped_by is None else 128 + result.stopped_by


FLAGS = ("resume", "overwrite", "allow_changes")


def read_words(cls: type[Config], words: Sequence[str], output: str) -> tuple[Config, set[str]]:
    """The configuration and the flags of a training command: the resumed run's own file, else the recipe of the preset,
    else --config; then the words. output: the folder where none is given."""
    given, flags = configuration.words(cls, words, flags=FLAGS)
    if flags >= {"resume", "overwrite"}:
        raise configuration.ConfigError("--resume, --overwrite: expected at most one of the two")
    if "allow_changes" in flags and "resume" not in flags:
        raise configuration.ConfigError("--allow-changes: expected --resume beside it")
    given.setdefault("output", output)
    own = Path(given["output"]) / CONFIG_FILE
    if "resume" in flags and not own.is_file() and "config" not in given:
        # The recipe's settings would be those of another run, which happens to be in a folder of this name.
        from lavit.training.engine.checkpoint import CheckpointError

        raise CheckpointError(f"--resume: {own} is not there, with the settings of the run to go on with")
    base: str | Path = own if "resume" in flags else cls.recipe_file(given.get("preset", "small"))
    base = given.pop("config", base)
    return cls.read(base, given), flags


def _print(row: dict[str, Any]) -> None:
    from lavit.training.engine.metrics import progress_line

    print(progress_line(row, row["steps"]), flush=True)


def _print_end(config: Any, result: Any, skipped: Skipped, what: str, ending: str) -> None:
    if skipped:
        print(f"{len(skipped)} {what}:")
        for name, reason in skipped[:20]:
            print(f"  {name}: {reason}")
    if result.stopped_by is not None and result.path is None:
        print(f"stopped by signal {result.stopped_by}; go on with --resume --output {config.output}")
    else:
        print(ending)
