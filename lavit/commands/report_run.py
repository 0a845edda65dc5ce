"""The work of ``lavit report``, when its words are right."""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lavit import __version__
from lavit.commands import outputs, pixel_options
from lavit.commands.image_inputs import tell_skipped
from lavit.commands.model_folders import (
    PIPELINE_FILE,
    PIXELS,
    check_same_codes,
    find_tokenizer,
    load_lavit,
    load_tokenizer,
    pixels_folder,
)
from lavit.commands.options import only_given, pick_device
from lavit.commands.progress import tenths
from lavit.evaluation.data_folder import ANNOTATIONS
from lavit.evaluation.examination import Examination, Folder, Parts, examine, read_pictures
from lavit.kernels import dispatch
from lavit.report.folder_page import About, write_folder_report
from lavit.report.format import decimal, integer, percent
from lavit.report.result import mean_of
from lavit.report.training_runs import TrainingRun, is_run, read_run
from lavit.training.engine.validation import BEST

if TYPE_CHECKING:
    from lavit.pixels import LaVITPixelPipeline

RELEASED_PATCHES = 256
TOLD = 20
"""Names of what is left out; the page has more."""
_MISSING = {"rebuilt": "rebuilt pictures", "drawn": "drawn pictures", "changed": "changed pictures"}
_MISSING |= {name: name for name in ("captions", "answers")}
_PACKAGES = ("torch", "triton", "transformers", "diffusers", "numpy", "pillow")


def run(options: argparse.Namespace, command: str) -> int:
    device = pick_device(options.device)
    runs = _runs(options)
    folder = read_pictures(options.data)
    _check_output(options, folder)
    pixels = _pixels(options)
    pipeline = pixel_options.ready(pixels, device, _accelerated(options)) if pixels is not None else None
    parts = _parts(options, device, pipeline)
    fewest = None if parts.tokenizer.num_patches >= RELEASED_PATCHES else 1
    with tempfile.TemporaryDirectory(prefix="lavit-") as pictures:
        found = examine(
            parts,
            folder,
            Path(pictures),
            limit=options.limit,
            drawn=options.drawn,
            seed=options.seed,
            batch_size=options.batch_size,
            progress=tenths,
            texts=only_given(num_beams=options.beams, min_new=options.min_new, max_new=options.max_new),
            drawing=only_given(guidance=options.guidance, top_k=options.top_k, min_tokens=fewest),
        )
        about = _about(options, command, parts, pipeline, found, device)
        shown = {"shown": options.shown, "extremes": options.extremes}
        write_folder_report(found, runs, about, options.output, **shown)
    for name, reason in found.skipped[:TOLD]:
        tell_skipped(name, reason)
    if found.skipped[TOLD:]:
        print(f"lavit: {len(found.skipped)} left out, {TOLD} of them told here", file=sys.stderr)
    for line in _lines(found):
        print(line)
    print(f"report: {options.output}")
    return 1 if found.skipped else 0


def _runs(options: argparse.Namespace) -> list[TrainingRun]:
    """MODEL's own first, where it is a run's, or the best model of one."""
    model = Path(options.model)
    own = model.parent if model.resolve().name == BEST and not is_run(model) else model
    given = [*([own] if is_run(own) else []), *options.runs]
    # Once each, however they are spelled.
    return [read_run(folder) for folder in {Path(folder).resolve(): folder for folder in given}.values()]


def _check_output(options: argparse.Namespace, folder: Folder) -> None:
    """ValueError where the page would take the place of what is read."""
    files = [*(Path(options.data, name) for name in ANNOTATIONS), *folder.pictures]
    outputs.check_not_read("--output", [options.output], files, "one of the files")
    files = [path for place in (options.model, options.pixels) if place for path in Path(place).glob("*.*")]
    files = [path for path in files if path.suffix != ".html"]
    outputs.check_not_read("--output", [options.output], files, "a file of the model")


def _pixels(options: argparse.Namespace) -> str | None:
    """Where the pixel pipeline is, if there is one; one that is asked for must be there."""
    if options.pixels is not None:
        return pixels_folder(None, options.pixels)
    found = (Path(options.model), Path(options.model, PIXELS))
    return next((str(place) for place in found if (place / PIPELINE_FILE).is_file()), None)


def _accelerated(options: argparse.Namespace) -> argparse.Namespace:
    return argparse.Namespace(scheduler=None, compile=False, steps=options.steps)


def _parts(options: argparse.Namespace, device: torch.device, pipeline: LaVITPixelPipeline | None) -> Parts:
    language: Any = None
    processor: Any = None
    if find_tokenizer(options.model)[2] == "lavit":
        language, processor = load_lavit(options.model, device)
        tokenizer, image_processor = language.visual_tokenizer, processor.image_processor
    elif pipeline is not None and (Path(options.model) / PIPELINE_FILE).is_file():
        tokenizer, image_processor = pipeline.tokenizer, pipeline.image_processor
        if image_processor is None:
            raise ValueError(f"{options.model} has no image_processor, without which no image can be read")
    else:
        tokenizer, image_processor = load_tokenizer(options.model, device)
    if pipeline is None:
        return Parts(tokenizer, image_processor, language, processor)
    check_same_codes(tokenizer, pipeline.tokenizer, ("MODEL", "the pixel pipeline"))
    settings = only_given(num_inference_steps=options.steps, guidance_scale=options.pixel_guidance)

    def draw(codes: Any, seeds: Any, names: Any) -> Any:
        return pixel_options.draw(pipeline, codes, seeds, names, settings)

    return Parts(tokenizer, image_processor, language, processor, draw)


def _about(
    options: argparse.Namespace,
    command: str,
    parts: Parts,
    pipeline: LaVITPixelPipeline | None,
    found: Examination,
    device: torch.device,
) -> About:
    config = parts.tokenizer.config
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    threads = torch.get_num_threads()
    settings = {
        "model": options.model,
        "folder": f"{options.data}, {len(found.tokens.seen)} of {found.pictures} pictures",
        "picture": f"{config.image_size} × {config.image_size} pixels, patches of {config.patch_size}",
        "fit": parts.image_processor.fit,
        "codes": str(config.num_codes),
        "seed": str(options.seed),
        "device": f"{name}, {threads} thread{'' if threads == 1 else 's'}",
    }
    chosen = ("pixels", "beams", "min_new", "max_new", "guidance", "top_k", "steps", "pixel_guidance")
    settings |= {key.replace("_", " "): str(value) for key in chosen if (value := getattr(options, key)) is not None}
    versions = {"lavit": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    modules = {"tokenizer": parts.tokenizer}
    if parts.language is not None:
        modules["language model"] = getattr(parts.language, "language_model", None)
    if pipeline is not None:
        modules |= {"conditioner": pipeline.conditioner, "U-Net": pipeline.unet}
    parameters = {
        part: sum(p.numel() for p in module.parameters())
        for part, module in modules.items()
        if isinstance(module, torch.nn.Module)
    }
    return About(command, settings, versions, dispatch.table(device.type), parameters)


def _lines(found: Examination) -> list[str]:
    """The head of the page, for the terminal."""
    seen = found.tokens.seen
    tokens, cosine = (mean_of([float(getattr(one, name)) for one in seen]) for name in ("tokens", "cosine"))
    lines = [f"{integer(len(seen))} pictures: {decimal(tokens, 1)} tokens each, cosine {decimal(cosine)}"]
    if found.captions:
        told = f"(always the same one: {percent(found.captions.guessed_exact)})"
        lines.append(f"captions word for word right: {percent(found.captions.exact)} {told}")
    if found.answers:
        told = f"(the usual answer to each kind: {percent(found.answers.constant)})"
        lines.append(f"answers right: {percent(found.answers.accuracy)} {told}")
    if found.rebuilt:
        told = f"(mean colour: {decimal(mean_of([one.flat for one in found.rebuilt]), 1)} dB)"
        lines.append(f"rebuilt pictures: {decimal(mean_of([one.psnr for one in found.rebuilt]), 1)} dB {told}")
    for name, part in (("drawn for captions", found.drawn), ("changed as asked", found.changed)):
        if part:
            told = f"the true picture is the nearest of {part.gallery} to {percent(part.found(1))}"
            lines.append(f"{name}: {told} (chance {percent(part.chance(1))})")
    for why in dict.fromkeys(found.missing.values()):
        names = [_MISSING[name] for name, own in found.missing.items() if own == why]
        lines.append(f"no {', '.join(names)}: {why}")
    return lines
