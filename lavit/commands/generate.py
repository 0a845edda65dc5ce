"""``lavit generate``: images drawn for a prompt of text and images, or from tokens."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lavit.commands import outputs, pixel_options
from lavit.commands.image_inputs import Unread, skip
from lavit.commands.model_folders import check_same_codes, load_lavit, pixels_folder, prepare_encoder
from lavit.commands.options import check_at_least, command_parser, only_given, pick_device
from lavit.commands.outputs import LINES
from lavit.data.images import load_image

RELEASED_PATCHES = 256

DESCRIPTION = f"""Draw images for a prompt: texts and image files in any order, as the model is to read them.

  lavit generate "a red square top left" --model DIR --out drawn.png
  lavit generate photo.png "the same at night" --model DIR --out night.png --samples 4
  lavit generate --tokens tokens.json --pixels DIR --out again.png

What names an existing file is an image, all else is text. {pixel_options.FOLDERS}"""

EPILOG = """--out: with more than one image their numbers are put before the suffix: drawn-1.png, drawn-2.png, ...
Existing files are replaced. --json: "seed", and "images": for each "file", "seed" of its own, "tokens" and "ids", which
--tokens reads again, as what `lavit tokenize --json` writes; an entry there that cannot be used is named and left out.
An image depends on its own seed, prompt and settings, not on how many there are.
Exit code 0; 1 if entries of --tokens were left out; 2 on an error, or if all were.
"""


def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    prompt = [_piece(text) for text in options.prompt]
    skipped: list[Unread] = []
    given = _read_tokens(options.tokens, skipped) if options.tokens else []
    targets = _targets(options.out, (len(given) if options.tokens else 1) * options.samples)
    outputs.check_not_read("--out", targets, options.prompt)
    place = pixels_folder(options.model, options.pixels)

    import torch

    from lavit.data.stream import seed_of
    from lavit.kernels import Ragged

    device = pick_device(options.device)
    seed = secrets.randbits(63) if options.seed is None else options.seed

    pipeline = pixel_options.ready(place, device, options)
    if options.tokens:
        limits = pipeline.tokenizer.config
        usable = [item for item in given if _fits(item, limits.num_codes, limits.num_patches, skipped)]
        if not usable:
            raise ValueError(f"--tokens: none of the images of {options.tokens} could be used")
        targets = _targets(options.out, len(usable) * options.samples)
        all_ids = [torch.tensor(ids, dtype=torch.int64) for _, ids in usable for _ in range(options.samples)]
    else:
        model, processor = load_lavit(options.model, device)
        check_same_codes(model.visual_tokenizer, pipeline.tokenizer, (options.model, place))
        if shown := sum(not isinstance(piece, str) for piece in prompt):
            prepare_encoder(model.visual_tokenizer, options, shown * min(options.batch_size, len(targets)))
        settings = _sampling(options, model.visual_tokenizer.num_patches)

    records: list[dict[str, Any]] = []
    for begin in range(0, len(targets), options.batch_size):
        names = targets[begin : begin + options.batch_size]
        seeds = [seed_of(seed, begin + i) for i in range(len(names))]
        if options.tokens:
            codes = Ragged.from_list(all_ids[begin : begin + len(names)])
        else:
            codes = model.generate_tokens([prompt] * len(names), processor, seeds=seeds, **settings).codes
        images = pixel_options.draw(pipeline, codes, seeds, names, options.drawing)
        for name, image, own, ids in zip(names, images, seeds, codes.unbind(), strict=True):
            outputs.write_picture(image, name)
            records.append({"file": name, "seed": own, "tokens": len(ids), "ids": ids.tolist()})
            if options.json != "-":
                print(f"{name}: {image.width} x {image.height} pixels of {len(ids)} tokens")
    if options.json:
        head = {"model": options.model, "pixels": place, "seed": seed}
        content = {**head, "images": records, "skipped": [vars(item) for item in skipped]}
        outputs.write_text(options.json, json.dumps(content, indent=1) + "\n")
    if options.json != "-":
        print(f"seed {seed}")
    return 1 if skipped else 0


def _piece(text: str) -> str | Image.Image:
    """An image where the text names an existing file."""
    path = Path(text)
    try:
        is_file = path.is_file()
    except OSError:  # too long for a name
        is_file = False
    if is_file:
        return load_image(path)
    if path.suffix.lower() in Image.registered_extensions() and len(text.split()) == 1:
        raise ValueError(f"PROMPT: there is no image file {text}")
    if not text.strip():
        raise ValueError("PROMPT: expected texts and image files, got an empty one")
    return text


def _read_tokens(source: str, skipped: list[Unread]) -> list[tuple[str, list[int]]]:
    """The name and the ids of each image of a file of tokens; entries without ids are skipped."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        entries: Any
        if source.lower().endswith(LINES):
            entries = list(_lines(text))
        else:
            content = json.loads(text)
            entries = content.get("images") if isinstance(content, dict) else None
    except ValueError as error:
        raise ValueError(f"--tokens: {source} is no JSON ({error})") from error
    if not isinstance(entries, list):
        raise ValueError(f'--tokens: expected a list of "images", as `lavit tokenize --json` writes it, in {source}')
    found = []
    for number, entry in enumerate(entries):
        entry = entry if isinstance(entry, dict) else {}
        name, ids = f"image {number} ({entry.get('file', 'no name')})", entry.get("ids")
        if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            reason = entry.get("reason")  # why `lavit tokenize` left it out
            skip(skipped, name, reason if isinstance(reason, str) else 'expected a list of integers as "ids"')
        else:
            found.append((name, ids))
    return found


def _lines(text: str) -> Iterator[Any]:
    """What stands in lines of JSON, but for the lines that are of all images: several files may have been joined."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not (isinstance(entry, dict) and "selection" in entry and "ids" not in entry):
            yield entry


def _fits(item: tuple[str, list[int]], num_codes: int, num_patches: int, skipped: list[Unread]) -> bool:
    name, ids = item
    wrong = next((i for i in ids if not 0 <= i < num_codes), None)
    if len(ids) > num_patches:
        skip(skipped, name, f"{len(ids)} codes are more than the {num_patches} positions of the decoder")
    elif wrong is not None:
        skip(skipped, name, f"expected codes 0 to {num_codes - 1}, got {wrong}")
    else:
        return True
    return False


def _sampling(options: argparse.Namespace, num_patches: int) -> dict[str, Any]:
    """What was asked for; the rest is the model's own or the release's, but the fewest tokens of few patches."""
    fewest = None if num_patches >= RELEASED_PATCHES else 1
    return only_given(
        guidance=options.text_guidance,
        top_k=options.top_k,
        temperature=options.temperature,
        min_tokens=fewest if options.min_tokens is None else options.min_tokens,
    )


def _targets(out: str, count: int) -> list[str]:
    path = Path(out)
    if count == 1:
        return [out]
    return [str(path.with_name(f"{path.stem}-{number}{path.suffix}")) for number in range(1, count + 1)]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("generate", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("prompt", metavar="PROMPT", nargs="*", help="a text, or an image file")
    add("--out", metavar="F", help="the image to write (.png, .jpg, .jpeg, .webp)")
    add("--model", metavar="DIR", help="folder of a language model")
    add("--pixels", metavar="DIR", help="folder of a pixel pipeline; else `pixels` in --model")
    add("--tokens", metavar="F", help="draw the tokens of this file (JSON) instead of a prompt; - for standard input")
    add("--json", metavar="F", help="write the tokens drawn to this file; - for the standard output")
    add("--samples", type=int, default=1, metavar="N", help="images to draw, of each entry with --tokens [1]")
    add("--seed", type=int, metavar="S", help="of the samples; a new one if not given, and told")
    own = "else the model's own, or the release's:"
    add("--text-guidance", type=float, metavar="G", help=f"of the tokens by the prompt; {own} 4, or 5 with images")
    add("--top-k", type=int, metavar="K", help=f"likeliest codes to draw from; {own} 50")
    add("--temperature", type=float, metavar="T", help=f"of drawing codes; 0 takes the likeliest; {own} 1")
    add("--min-tokens", type=int, metavar="N", help="fewest of an image; else 20, or 1 of fewer than 256 patches")
    pixel_options.add_options(parser)
    options = parser.parse_args(argv)
    if bool(options.prompt) == bool(options.tokens):
        got = "both" if options.prompt else "neither"
        raise ValueError(f"PROMPT: expected either a prompt or --tokens F, got {got}")
    if options.out is None:
        raise ValueError("--out F is needed: the image to write")
    if options.model is None and (options.pixels is None or options.prompt):
        raise ValueError("--model DIR is needed: the folder of a language model")
    outputs.check_picture("--out", options.out)
    outputs.check_file("--out", options.out)
    outputs.check_file("--json", options.json)
    pixel_options.check_options(options)
    check_at_least(options, samples=1, text_guidance=0, top_k=1, temperature=0, min_tokens=0)
    return options
