"""The emoji world from the font to the figures: drawn, learned by the stages of lavit, and judged.

    OUT/world/      what `draw` writes
    OUT/encoder/, OUT/tokenizer/, OUT/language/, OUT/pixels/   what `lavit train` leaves of each stage
    OUT/judged/     the figures of each split, and sheets of pictures
    OUT/seconds.json   of each step; a step that is there is not done again

The recipes lie in recipes/: a folder for each length.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.emoji.draw import WORLD
from examples.emoji.splits import TRAIN

RECIPES = Path(__file__).parent / "recipes"
MINUTES = {8: 64, 40: 256}
"""Lengths that there are recipes for, on two cores; and how many pictures of each split are judged then."""
REPOSITORY = Path(__file__).resolve().parents[2]
DONE = "seconds.json"


@dataclass(frozen=True)
class Step:
    """One command. output: its folder; resumes: whether it goes on with what is there by ``--resume``."""

    name: str
    command: tuple[str, ...]
    output: Path
    resumes: bool = False


def steps(out: Path, minutes: int, *, seed: int = 0, font: str | None = None) -> list[Step]:
    """The commands, in their order. Raises ValueError for a length without recipes."""
    if minutes not in MINUTES:
        raise ValueError(f"minutes: expected one of {', '.join(map(str, MINUTES))}, got {minutes}")
    recipes = RECIPES / f"minutes-{minutes}"
    world = out / "world"
    emoji, lavit = (sys.executable, "-m", "examples.emoji"), (sys.executable, "-m", "lavit", "train")

    def stage(name: str, *more: str) -> Step:
        words = ("--config", str(recipes / f"{name}.yaml"), "--data", str(world / TRAIN), "--seed", str(seed))
        output = out / name
        return Step(name, (*lavit, name, *words, *more, "--output", str(output)), output, resumes=True)

    drawing = ("draw", str(world), "--seed", str(seed), *(("--font", font) if font else ()))
    model = ("--model", str(out / "language"), "--pixels", str(out / "pixels"))
    judged = out / "judged"
    judging = ("--output", str(judged), "--items", str(MINUTES[minutes]), "--seed", str(seed))
    return [
        Step("world", (*emoji, *drawing), world),
        stage("encoder"),
        stage("tokenizer", "--encoder", str(out / "encoder")),
        stage("language", "--tokenizer", str(out / "tokenizer")),
        stage("pixels", "--tokenizer", str(out / "tokenizer")),
        Step("judged", (*emoji, "judge", str(world), *model, *judging), judged),
    ]


def run(
    todo: Sequence[Step],
    out: Path,
    *,
    call: Callable[[Sequence[str]], int] | None = None,
    tell: Callable[[str], None] = print,
) -> int:
    """Does what is not done yet; returns the exit code of the first command that fails, or 0."""
    call = call or run_command
    out.mkdir(parents=True, exist_ok=True)
    done: dict[str, float] = json.loads((out / DONE).read_text()) if (out / DONE).is_file() else {}
    for step in todo:
        if step.name in done:
            tell(f"{step.name}: done before, in {done[step.name]:.0f} s")
            continue
        command = list(step.command)
        if step.resumes and (step.output / "checkpoints").is_dir():
            command.append("--resume")
        tell(" ".join(command))
        begun = time.perf_counter()
        if code := call(command):
            return code
        done[step.name] = round(time.perf_counter() - begun, 1)
        (out / DONE).write_text(json.dumps(done))
    tell(f"{sum(done.values()) / 60:.1f} minutes: {', '.join(f'{name} {took:.0f} s' for name, took in done.items())}")
    return 0


def run_command(command: Sequence[str]) -> int:
    """Its exit code. Whoever ends this process ends the command, which keeps a checkpoint and is waited for."""
    process = subprocess.Popen(command, cwd=REPOSITORY)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal has told the command, too
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return code if code >= 0 else 128 - code


def check_world(world: Path) -> None:
    """Raises FileNotFoundError for a folder that `draw` has not finished."""
    if not (world / WORLD).is_file():
        raise FileNotFoundError(f"WORLD: there is no {WORLD} in {world}, which `python -m examples.emoji draw` writes")
