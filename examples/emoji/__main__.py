"""``python -m examples.emoji``: see README.md beside this file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.emoji.pictures import SIZES
from examples.emoji.run import MINUTES, check_world, run, steps
from examples.emoji.splits import SPLITS
from examples.emoji.table import FIGURES, LENGTHS, read_figures, table
from lavit.cli import without_noise

FONT = "NotoColorEmoji.ttf (default: where the system has it)"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.emoji", description="The emoji world.")
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("draw", help="draw the world into a folder, in the format that lavit trains on")
    draw.add_argument("out", metavar="OUT", help="a new or empty folder")
    draw.add_argument("--font", metavar="PATH", help=FONT)
    draw.add_argument("--seed", type=int, default=0, help="of all that is chosen (default: 0)")
    draw.add_argument("--size", type=int, default=64, choices=SIZES, help="pixels of a side (default: 64)")
    draw.add_argument("--backgrounds", type=int, default=2, help="on how many each emoji is shown (default: 2)")
    draw.add_argument("--limit", type=int, help="of the emoji (default: all)")
    judge = commands.add_parser("judge", help="judge a model on the splits of the world")
    judge.add_argument("world", metavar="WORLD", help="what draw wrote")
    judge.add_argument("--model", metavar="DIR", required=True, help="of `lavit train language`")
    judge.add_argument("--pixels", metavar="DIR", help="of `lavit train pixels` (default: pixels in --model)")
    judge.add_argument("--output", metavar="DIR", required=True, help="gets the figures, and sheets of pictures")
    judge.add_argument("--splits", nargs="+", default=list(SPLITS), choices=SPLITS, help="(default: all)")
    judge.add_argument("--items", type=int, default=256, help="pictures of each split (default: 256)")
    judge.add_argument("--seed", type=int, default=0, help="of which these are, and of the noise (default: 0)")
    whole = commands.add_parser("run", help="draw, train all stages and judge; goes on where it was stopped")
    whole.add_argument("out", metavar="OUT", help="a folder for all of it")
    whole.add_argument("--minutes", type=int, default=40, choices=list(MINUTES), help="on two cores (default: 40)")
    whole.add_argument("--seed", type=int, default=0, help="of all stages and of the judge (default: 0)")
    whole.add_argument("--length", default="dynamic", choices=LENGTHS, help="of a picture's tokens (default: dynamic)")
    whole.add_argument("--world", metavar="DIR", help="a world that is drawn already (default: OUT/world)")
    whole.add_argument("--encoder", metavar="DIR", help="one that is trained already (default: OUT/encoder)")
    whole.add_argument("--world-seed", type=int, default=0, help="of the world that is drawn (default: 0)")
    whole.add_argument("--font", metavar="PATH", help=FONT)
    several = commands.add_parser("table", help="print the medians of several runs as a table in Markdown")
    several.add_argument("runs", metavar="RUN", nargs="+", help="what run, or judge, wrote")
    options = parser.parse_args(words)
    try:
        with without_noise():
            return {"draw": _draw, "judge": _judge, "run": _run, "table": _table}[options.command](options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _draw(options: argparse.Namespace) -> int:
    from examples.emoji.draw import Settings, draw
    from examples.emoji.glyphs import LICENCE, FontGlyphs

    settings = Settings(options.size, options.seed, options.backgrounds, options.limit)
    glyphs = FontGlyphs(options.font)
    print(f"{glyphs.path}\n{LICENCE}")
    if not glyphs.sequences:
        print("Pillow has no raqm here (libraqm, fribidi): sequences are left out: skin tones, professions, flags")
    counts = draw(options.out, glyphs, settings)
    for name in SPLITS:
        part = counts[name]
        asked, changed = sum(part["questions"].values()), sum(part["edits"].values())
        print(
            f"{name}: {part['pictures']} pictures of {part['names']} emoji, {part['low_contrast']} of low contrast; "
            f"{asked} questions, {changed} edits"
        )
    print(f"{counts['emoji']} emoji in {counts['seconds']} s: {options.out}")
    return 0


def _judge(options: argparse.Namespace) -> int:
    world, output = Path(options.world), Path(options.output)
    check_world(world)
    if options.items < 2:
        raise ValueError(f"items: expected at least 2, got {options.items}")

    import torch

    from examples.emoji.measure import Examiner, read_part, sheet, told
    from lavit.commands.model_folders import load_lavit, load_pixels, pixels_folder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = pixels_folder(options.model, options.pixels)
    model, processor = load_lavit(options.model, device)
    pipeline = load_pixels(place, device)
    pipeline.set_progress_bar_config(disable=True)
    examiner = Examiner(model, processor, pipeline, seed=options.seed)
    output.mkdir(parents=True, exist_ok=True)
    figures = {}
    for split in options.splits:
        found = examiner.measure(read_part(world, split, options.items, options.seed))
        figures[split] = found.figures
        print("\n".join(told(found.figures)), flush=True)
        for name in ("again", "drawn", "changed"):
            if rows := getattr(found, name):
                sheet(rows).save(output / f"{split}-{name}.png")
    (output / FIGURES).write_text(json.dumps(figures, indent=1))
    return 0


def _run(options: argparse.Namespace) -> int:
    out = Path(options.out).resolve()
    font, world, encoder = (
        None if place is None else Path(place).resolve() for place in (options.font, options.world, options.encoder)
    )
    if world is not None and (font or options.world_seed):
        raise ValueError(f"world: expected no --font and no --world-seed beside {world}, which is drawn already")
    todo = steps(
        out,
        options.minutes,
        seed=options.seed,
        world_seed=options.world_seed,
        font=font,
        length=options.length,
        world=world,
        encoder=encoder,
    )
    return run(todo, out)


def _table(options: argparse.Namespace) -> int:
    print(table([read_figures(Path(place)) for place in options.runs]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
