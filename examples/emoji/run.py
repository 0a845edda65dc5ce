"""The emoji world from the font to the figures: drawn, learned by the stages of lavit, and judged.

    OUT/world/      what `draw` writes
    OUT/encoder/, OUT/tokenizer/, OUT/language/, OUT/pixels/   what `lavit train` leaves of each stage
    OUT/judged/     the figures of each split, and sheets of pictures
    OUT/steps.json  of each step, what it was run with, and its seconds once it is done

Language and pixels need nothing of each other: with two CPUs or more they are trained side by side, on half of them
each, since a second thread makes a training of small models by far less than twice as fast. What the second prints is
in OUT/pixels.log. The recipes lie in recipes/: a folder for each length.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from examples.emoji.draw import WORLD
from examples.emoji.splits import COMBINATIONS, TRAIN
from examples.emoji.table import LENGTHS
from lavit.data.atomic_write import atomic_write
from lavit.threads import usable
from lavit.training.engine.replaced import checkpoints_in

RECIPES = Path(__file__).parent / "recipes"
MINUTES = {8: 64, 40: 256}
"""Minutes on two cores that there are recipes for; and how many pictures of each split are judged then."""
REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = "steps.json"
POLL = 0.1  # seconds between two looks at the commands that run


@dataclass(frozen=True)
class Call:
    """A command to run. log: the file that what it prints is added to; None: it is printed."""

    words: Sequence[str]
    log: Path | None = None


Caller = Callable[[Sequence[Call], Callable[[int, int], None]], None]
"""As `run_commands`."""

Kept = dict[str, dict[str, Any]]
"""What steps.json holds."""


@dataclass(frozen=True)
class Step:
    """One command. output: its folder; recipe: of a stage of training, which goes on with what is there by
    ``--resume``."""

    name: str
    words: tuple[str, ...]
    output: Path
    recipe: Path | None = None
    beside: bool = False
    """Whether it needs nothing of the step before, and may run at the same time."""

    @property
    def command(self) -> tuple[str, ...]:
        return (sys.executable, "-m", *self.words)


def steps(
    out: Path,
    minutes: int,
    *,
    seed: int = 0,
    world_seed: int = 0,
    font: Path | None = None,
    length: str = "dynamic",
    world: Path | None = None,
    encoder: Path | None = None,
) -> list[Step]:
    """The commands, in their order. length: of a picture's tokens, one of ``LENGTHS``. world, encoder: folders of
    another run, which are not made then.

    Raises ValueError for minutes without recipes and another length, FileNotFoundError for a folder that is not there.
    """
    if minutes not in MINUTES:
        raise ValueError(f"minutes: expected one of {', '.join(map(str, MINUTES))}, got {minutes}")
    if length not in LENGTHS:
        raise ValueError(f"length: expected one of {', '.join(LENGTHS)}, got {length}")
    if world is not None:
        check_world(world)
    if encoder is not None and not encoder.is_dir():
        raise FileNotFoundError(f"encoder: there is no folder {encoder}")
    drawn, own_encoder = world or out / "world", out / "encoder"

    def stage(name: str, *more: str, beside: bool = False) -> Step:
        recipe = RECIPES / f"minutes-{minutes}" / f"{name}.yaml"
        folders = ("--data", str(drawn / TRAIN), "--validation", str(drawn / COMBINATIONS))
        words = ("--config", str(recipe), *folders, "--seed", str(seed), *more, "--output", str(out / name))
        return Step(name, ("lavit", "train", name, *words), out / name, recipe, beside)

    drawing = ("draw", str(drawn), "--seed", str(world_seed), *(("--font", str(font)) if font else ()))
    fixed = ("--tokenizer.length", length) if length != "dynamic" else ()
    model = ("--model", str(out / "language"), "--pixels", str(out / "pixels"))
    judged = ("--output", str(out / "judged"), "--items", str(MINUTES[minutes]), "--seed", str(seed))
    return [
        *([Step("world", ("examples.emoji", *drawing), drawn)] if world is None else []),
        *([stage("encoder")] if encoder is None else []),
        stage("tokenizer", "--encoder", str(encoder or own_encoder), *fixed),
        stage("language", "--tokenizer", str(out / "tokenizer")),
        stage("pixels", "--tokenizer", str(out / "tokenizer"), beside=True),
        Step("judged", ("examples.emoji", "judge", str(drawn), *model, *judged), out / "judged"),
    ]


def run(
    todo: Sequence[Step],
    out: Path,
    *,
    call: Caller | None = None,
    tell: Callable[[str], None] = print,
    cpus: int | None = None,
) -> int:
    """Does what is not done yet; returns the exit code of the first command that fails, or 0. cpus: None for those that
    this process may use.

    Raises ValueError for a folder in which a step was run with other words, or by a recipe of other contents.
    """
    out.mkdir(parents=True, exist_ok=True)
    kept: Kept = json.loads((out / STEPS).read_text()) if (out / STEPS).is_file() else {}
    for step in todo:
        if step.name in kept and (kept[step.name]["seconds"] is not None or _to_resume(step)):
            _check_same(step, kept[step.name]["with"], out)
    cpus = usable()[0] if cpus is None else cpus
    seconds = 0.0
    for group in _groups(todo, cpus):
        before = [kept[step.name] for step in group if _done(step, kept)]
        seconds += sum(each["seconds"] for each in before if not each.get("beside"))
        seconds += max((each["seconds"] for each in before if each.get("beside")), default=0.0)
        for step in filter(lambda step: _done(step, kept), group):
            tell(f"{step.name}: done before, in {kept[step.name]['seconds']:.0f} s")
        if left := [step for step in group if not _done(step, kept)]:
            begun = time.perf_counter()
            if code := _together(left, out, kept, cpus, call or run_commands, tell):
                return code
            seconds += time.perf_counter() - begun
    took = {step.name: kept[step.name]["seconds"] for step in todo}
    tell(f"{seconds / 60:.1f} minutes: {', '.join(f'{name} {each:.0f} s' for name, each in took.items())}")
    return 0


def _together(
    group: Sequence[Step], out: Path, kept: Kept, cpus: int, call: Caller, tell: Callable[[str], None]
) -> int:
    """Runs steps at the same time, and writes down what they are run with and their seconds. The exit code of the first
    that fails, or 0."""
    calls: list[Call] = []
    for step in group:
        words = [*step.command, *(_going_on(step) if step.name in kept else ())]
        if len(group) > 1:
            words += ["--threads", str(cpus // len(group))]
        calls.append(Call(words, out / f"{step.name}.log" if calls else None))
        tell(" ".join(words) + (f" > {calls[-1].log}" if calls[-1].log else ""))
        kept[step.name] = {"with": run_with(step, out), "seconds": None, "beside": len(group) > 1}
    _write(out, kept)
    begun = time.perf_counter()
    failed: list[int] = []

    def ended(number: int, code: int) -> None:
        if code:
            failed.append(code)
            if calls[number].log:
                tell(f"{group[number].name} has failed; {calls[number].log} tells why")
        kept[group[number].name]["seconds"] = None if code else round(time.perf_counter() - begun, 1)
        _write(out, kept)

    call(calls, ended)
    return failed[0] if failed else 0


def _done(step: Step, kept: Kept) -> bool:
    return step.name in kept and kept[step.name]["seconds"] is not None


def _groups(todo: Iterable[Step], cpus: int) -> list[list[Step]]:
    """Steps that run at the same time, at most one for each CPU."""
    groups: list[list[Step]] = []
    for step in todo:
        if step.beside and groups and len(groups[-1]) < cpus:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


def run_with(step: Step, out: Path) -> dict[str, Any]:
    """The words of a step by option, and the contents of its recipe; wherever the run's folder and this one lie."""
    found: dict[str, Any] = {}
    option = "command"
    for word in step.words:
        if word.startswith("--"):
            option, word = word, ""
        place = Path(word)
        for name, folder in (("OUT", out), ("recipes", RECIPES)):
            if word and place.is_relative_to(folder):
                word = str(name / place.relative_to(folder))
        found[option] = f"{found.get(option, '')} {word}".strip()
    settings = yaml.safe_load(step.recipe.read_text(encoding="utf-8")) if step.recipe else {}
    return found | {f"recipe's {name}": value for name, value in settings.items()}


def _check_same(step: Step, before: Mapping[str, Any], out: Path) -> None:
    now = run_with(step, out)
    other = [
        f"{name}: {before.get(name, 'none')}, now {now.get(name, 'none')}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]
    if other:
        raise ValueError(
            f"OUT: expected a new folder, or what {out} was begun with; {step.name} has {'; '.join(other)}"
        )


def _to_resume(step: Step) -> bool:
    return step.recipe is not None and bool(checkpoints_in(step.output))


def _going_on(step: Step) -> tuple[str, ...]:
    """What a stage that this run has begun before is told: killed before its first checkpoint, it begins anew."""
    if _to_resume(step):
        return ("--resume",)
    begun = step.recipe is not None and step.output.is_dir() and any(step.output.iterdir())
    return ("--overwrite",) if begun else ()


def _write(out: Path, kept: Kept) -> None:
    with atomic_write(out / STEPS, "w") as file:
        json.dump(kept, file, indent=1)


def run_commands(calls: Sequence[Call], ended: Callable[[int, int], None]) -> None:
    """Runs them at the same time; tells the number of each and its exit code when it has ended. Whoever ends this
    process ends the commands, which keep checkpoints and are waited for."""
    running: dict[int, subprocess.Popen[bytes]] = {}

    def end(*_: Any) -> None:
        for process in running.values():
            process.terminate()

    before = signal.signal(signal.SIGTERM, end)
    try:
        with ExitStack() as files:
            for number, one in enumerate(calls):
                output = files.enter_context(open(one.log, "ab")) if one.log else None
                running[number] = subprocess.Popen(one.words, cwd=REPOSITORY, stdout=output, stderr=output)
        while running:
            for number in [number for number, process in running.items() if process.poll() is not None]:
                code = running.pop(number).returncode
                ended(number, code if code >= 0 else 128 - code)
            time.sleep(POLL)
    except KeyboardInterrupt:  # the terminal has told the commands, too
        raise
    except BaseException:
        end()
        raise
    finally:
        for process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, before)


def check_world(world: Path) -> None:
    """Raises FileNotFoundError for a folder that `draw` has not finished."""
    if not (world / WORLD).is_file():
        raise FileNotFoundError(f"WORLD: there is no {WORLD} in {world}, which `python -m examples.emoji draw` writes")
