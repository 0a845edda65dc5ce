"""``lavit train``: the words of its commands, read before anything of a model is imported, and how a run ends."""

from __future__ import annotations

import difflib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from lavit import threads
from lavit.training.engine import config as configuration
from lavit.training.engine import replaced
from lavit.training.engine.lock import locked
from lavit.training.engine.recipe import CONFIG_FILE, Recipe, check_folders

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=Recipe)
Skipped = Sequence[tuple[str, str]]
"""(name, reason) of items that could not be used."""

USAGE = """
The settings come from the preset's recipe or, instead, from --config, then from --key value; the section may be left
out where one only has the name (--steps for --loop.steps). A --config file may say `extends: small`: a recipe beside
it, or a preset, whose settings come first. --resume goes on from the newest whole checkpoint in the output folder, with
the settings saved there and on as many threads; it deletes nothing, and refuses settings that give the checkpoint
another meaning, unless --allow-changes stands beside it. --overwrite begins anew: what an earlier run left is moved to
.replaced in the folder, deleted when the new model is saved, and put back if the new run ends before its first
checkpoint. Two runs cannot use one folder at a time. A run under torchrun uses all its processes:
torchrun --nproc-per-node 8 -m lavit.cli train {name} --data FOLDER --output FOLDER
Ends with 0; with 1 when the loss stays NaN or Inf; with 128 + n when signal n stopped it (with a checkpoint, if there
was a step to keep).

"""

FLAGS = ("resume", "overwrite", "allow_changes")
HELP = ("--help", "-h")
WAIT = 120.0  # seconds, for the first process to put a run back


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
    began = time.time()
    words = list(sys.argv[1:] if argv is None else argv)
    if set(HELP) & set(words):
        print(usage + USAGE.format(name=name) + settings_shown(cls, words, f"runs/{name}"))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given, flags = configuration.words(cls, words, flags=FLAGS)
    config = read_words(cls, given, flags, f"runs/{name}")
    config.check_sources()
    check_folders(config, *folders)
    first = _first()
    if first and config.on_shapes:
        print(_of_shapes(given, flags), flush=True)

    from lavit.training.engine import distributed
    from lavit.training.engine.loop import TrainingDiverged

    module, function = target.split(":")
    train_stage = getattr(import_module(module), function)
    without_bars()
    choice = _threads(config, "threads" in given, "resume" in flags)
    if first:
        print(choice, flush=True)
    try:
        with threads.on(choice.threads):
            result = train_stage(config, progress=_print, **{name: name in flags for name in FLAGS})
    except TrainingDiverged as problem:
        print(f"lavit train {name}: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        number = getattr(stopped, "signal", int(signal.SIGINT))
        if first:
            print(f"lavit train {name}: {_interrupted(number, config, 'resume' in flags, began)}", file=sys.stderr)
        return 128 + number
    if distributed.launched_rank() == 0:
        _print_end(config, result, *tell(config, result))
    return 0 if result.stopped_by is None else 128 + result.stopped_by


# ---------------------------------------------------------------------------------------------------------------- words


def settings_shown(cls: type[Config], words: Sequence[str], output: str) -> str:
    """The settings that run with these words, as ``--help`` shows them: of a run that goes on its own, where there are
    some. Words that are wrong do not count. output: the folder where none is given.

    ConfigError for a preset or a file that is not there.
    """
    left = [word for word in words if word not in HELP]

    def base(given: Mapping[str, str], resume: bool) -> Path:
        own = Path(given.get("output", output)) / CONFIG_FILE
        if given.get("config"):
            return Path(given["config"])
        return own if resume and own.is_file() else cls.recipe_file(given.get("preset", "small"))

    try:
        given, flags = configuration.words(cls, left, flags=FLAGS)
        found = base(given, "resume" in flags)
        config = cls.read(found, {name: value for name, value in given.items() if name != "config"})
    except ValueError:
        pairs = [*zip(left, left[1:], strict=False), *(word.partition("=")[::2] for word in left if "=" in word)]
        only = {name[2:]: value for name, value in pairs if name in ("--preset", "--config", "--output")}
        found = base(only, "--resume" in left)
        config = cls.read(found)
    of = f"the preset {getattr(config, 'preset', 'small')}"
    if found.name == CONFIG_FILE and "--resume" in left:
        of = f"the run in {found.parent}"
    shown = f"settings of {of}, with what else is given [value]:"
    return "\n".join([*filter(None, [config.about()]), shown, configuration.describe(config)])


def read_words(cls: type[Config], given: Mapping[str, str], flags: set[str], output: str) -> Config:
    """The configuration of a training command: the resumed run's own file, else the recipe of the preset, else
    --config; then the words. output: the folder where none is given.

    ConfigError for flags that do not go together, CheckpointError where there is no run to go on with.
    """
    if flags >= {"resume", "overwrite"}:
        raise configuration.ConfigError("--resume, --overwrite: expected at most one of the two")
    if "allow_changes" in flags and "resume" not in flags:
        raise configuration.ConfigError("--allow-changes: expected --resume beside it")
    given = {"output": output, **given}
    base: str | Path = given.pop("config", "")
    if "resume" in flags:
        folder = Path(given["output"])
        _recover(folder)
        own = folder / CONFIG_FILE
        # The recipe's settings would be those of another run, which happens to be in a folder of this name.
        if not (own.is_file() or (base and (folder / "checkpoints").is_dir())):
            from lavit.training.engine.checkpoint import CheckpointError

            said = f"--resume: {own} is not there, with the settings of the run to go on with"
            raise CheckpointError(said + near(folder))
        base = base or own
    return cls.read(base or cls.recipe_file(given.get("preset", "small")), given)


def _recover(folder: Path) -> None:
    """A process that was killed may have left the run that it was to replace aside. Of several processes, which all
    read the settings, the first one puts it back, and the others wait: TimeoutError where that does not happen."""
    if not _first():
        until = time.monotonic() + WAIT
        while replaced.unsettled(folder):
            if time.monotonic() > until:
                raise TimeoutError(f"--resume: the first process has not put back the run in {folder / replaced.ASIDE}")
            time.sleep(0.05)
    elif any((folder / name).is_dir() for name in (replaced.ASIDE, replaced.MOVING)):
        with locked(folder):
            if replaced.recover(folder):
                logger.info("%s: what was to replace the run here left nothing: the run is in its place again", folder)


def _first() -> bool:
    """Of those that torchrun has started; they are no group yet."""
    return int(os.environ.get("RANK", "0")) == 0


def near(folder: Path) -> str:
    """Runs whose folders have names like this one's, or else that there are beside it, as the end of an error."""
    top = next((parent for parent in folder.parents if parent.is_dir()), None)
    below = len(folder.relative_to(top).parts) if top is not None else 0
    if top is None or below > 2:
        return ""
    files = islice(top.glob("/".join(["*"] * below + [CONFIG_FILE])), 1000)
    found = {str(file.parent.relative_to(top)): str(file.parent) for file in sorted(files) if file.parent != folder}
    runs = {name: run for name, run in found.items() if not any(part.startswith(".") for part in Path(name).parts)}
    like = difflib.get_close_matches(str(folder.relative_to(top)), runs, n=3, cutoff=0.5)
    if like:
        return f"; did you mean {' or '.join(runs[name] for name in like)}?"
    there = list(runs.values())
    return f" (there are runs in {', '.join(there[:5])}{', ...' * (len(there) > 5)})" if there else ""


# ----------------------------------------------------------------------------------------------- what a run begins with


def _of_shapes(given: Mapping[str, str], flags: set[str]) -> str:
    if "data" in given:
        return "data: the built-in shapes world"
    if "resume" in flags:
        return "data: the built-in shapes world (as the run began)"
    if "config" in given:
        return f"data: the built-in shapes world (no --data given; {given['config']} names no other)"
    return "data: the built-in shapes world (no --data given)"


def _threads(config: Any, own_word: bool, resumed: bool) -> threads.Choice:
    """How many threads to train on; the configuration gets the number, which a run that goes on keeps. own_word:
    whether the number that is there already is the command line's."""
    import torch

    asked = getattr(config, "threads", None)
    device = getattr(config, "device", "cpu")
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    of = "the run began" if resumed else "the settings say"
    choice = threads.choose(*((asked, None) if own_word else (None, asked)), of=of, measure=on_cpu)
    if hasattr(config, "threads"):
        config.threads = choice.threads
    return choice


def without_bars() -> None:
    """Of packages that draw one for every file that they read or write."""
    for name in ("transformers.utils.logging", "diffusers.utils.logging"):
        if module := sys.modules.get(name):
            module.disable_progress_bar()


# ------------------------------------------------------------------------------------------------------ how a run ends


def _interrupted(number: int, config: Any, resumed: bool, began: float) -> str:
    """began: when this command did; a run of before may be in the folder, in its place again."""
    said = f"stopped by {signal.Signals(number).name}"
    kept = replaced.checkpoints_in(Path(config.output)) if config.output is not None else ()
    if resumed or any(file.stat().st_mtime >= began for file in kept):
        return f"{said}; go on with --resume --output {config.output}"
    return f"{said} before the first checkpoint: there is nothing to go on from"


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
        if (aside := Path(config.output) / replaced.ASIDE).is_dir():
            print(f"the run that this one replaces is in {aside} until this one has ended")
    else:
        print(ending)
