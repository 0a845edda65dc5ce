"""``python -m examples.emoji``: see README.md beside this file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from examples.emoji.pictures import SIZES


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.emoji", description="The emoji world.")
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("draw", help="draw the world into a folder, in the format that lavit trains on")
    draw.add_argument("out", metavar="OUT", help="a new or empty folder")
    draw.add_argument("--font", metavar="PATH", help="NotoColorEmoji.ttf (default: where the system has it)")
    draw.add_argument("--size", type=int, default=64, choices=SIZES, help="pixels of a side (default: 64)")
    draw.add_argument("--seed", type=int, default=0, help="of backgrounds, splits and edits (default: 0)")
    draw.add_argument("--backgrounds", type=int, default=2, help="on how many each emoji is shown (default: 2)")
    draw.add_argument("--limit", type=int, help="of the emoji (default: all)")
    options = parser.parse_args(words)
    try:
        return _draw(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _draw(options: argparse.Namespace) -> int:
    from examples.emoji.draw import Settings, draw
    from examples.emoji.glyphs import LICENCE, FontGlyphs
    from examples.emoji.splits import SPLITS

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


if __name__ == "__main__":
    sys.exit(main())
