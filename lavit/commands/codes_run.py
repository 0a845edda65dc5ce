"""The work of ``lavit codes``, when its words are right."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lavit import __version__
from lavit.commands import outputs
from lavit.commands.image_inputs import tell_skipped
from lavit.commands.model_folders import load_tokenizer
from lavit.commands.options import pick_device
from lavit.commands.progress import tenths
from lavit.data.image_folder import ImageFolder
from lavit.evaluation.code_patches import collect_code_patches
from lavit.evaluation.folder_sample import draw_sample
from lavit.report.codes_page import draw_codes, write_codes
from lavit.report.format import decimal, integer, percent


def run(options: argparse.Namespace) -> int:
    device = pick_device(options.device)
    every = ImageFolder(options.folder).paths
    paths = draw_sample(every, options.limit, options.seed)
    for name in ("output", "picture", "json"):
        if target := getattr(options, name):
            outputs.check_not_read(f"--{name}", [target], every)
    model, processor = load_tokenizer(options.model, device)
    found = collect_code_patches(
        model,
        processor,
        paths,
        codes=options.codes,
        patches=options.patches,
        context=options.context,
        seed=options.seed,
        batch_size=options.batch_size,
        progress=tenths("codes"),
    )
    for item in found.skipped:
        tell_skipped(item.name, item.reason)
    if options.output is not None:
        about = {
            "model": options.model,
            "folder": f"{options.folder}, {len(paths)} of {len(every)} pictures",
            "picture": f"{model.config.image_size} × {model.config.image_size} pixels, patches of {found.patch}",
            "seed": str(options.seed),
            "lavit": __version__,
        }
        write_codes(found, options.output, about)
    if options.picture is not None:
        outputs.write_picture(draw_codes(found), Path(options.picture))
    if options.json is not None:
        outputs.write_text(options.json, json.dumps({"model": options.model, **found.as_dict()}, indent=1) + "\n")
    if options.json != "-":
        share = 1 - found.within / found.variance if found.variance else float("nan")
        print(
            f"{integer(found.used)} of {integer(len(found.counts))} codes used by {integer(found.tokens)} tokens of "
            f"{integer(found.images)} pictures, perplexity {decimal(found.perplexity, 1)}; "
            f"{percent(share)} of the pixels' variance lies between codes"
        )
    for name in ("output", "picture"):
        if target := getattr(options, name):
            print(f"{name}: {target}", file=sys.stderr if options.json == "-" else sys.stdout)
    return 1 if found.skipped else 0
