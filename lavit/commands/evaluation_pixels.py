"""The tasks of `lavit evaluate` that draw pixels of a folder's images: for their captions, and from their tokens."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lavit.commands import pixel_options
from lavit.commands.model_folders import check_same_codes
from lavit.commands.options import only_given
from lavit.data.stream import seed_of
from lavit.evaluation.data_folder import DataFolder, fingerprint
from lavit.evaluation.inception import load_inception
from lavit.evaluation.journal import Journal
from lavit.evaluation.metric_weights import WeightsError, find_clip
from lavit.evaluation.perceptual import load_lpips
from lavit.evaluation.picture_sets import Files, true_statistics
from lavit.evaluation.picture_sets import fingerprint as of_weights
from lavit.evaluation.prompted import draw_prompts, generate_files
from lavit.evaluation.protocol import SETTINGS
from lavit.evaluation.reconstruction import Draw, Judges, reconstruct_files
from lavit.evaluation.runner import Skipped
from lavit.evaluation.tasks import Model, Progress, TaskReport
from lavit.evaluation.text_to_image import ClipScorer
from lavit.training.engine import distributed

RELEASED_PATCHES = 256

if TYPE_CHECKING:
    from lavit.pixels import LaVITPixelPipeline


def load_pipeline(place: str, device: torch.device, options: argparse.Namespace) -> LaVITPixelPipeline:
    asked = argparse.Namespace(scheduler=None, compile=False, steps=options.steps)
    return pixel_options.ready(place, device, asked)


def load_judges(options: argparse.Namespace, tasks: list[str], device: torch.device) -> Judges:
    """The networks of the metrics that the tasks need, as far as they are there; one that is asked for must be.

    ValueError where the best of several samples is to be taken without a CLIP.
    """
    lacking: dict[str, str] = {}
    inception = _optional(lambda: load_inception(options.inception, options.resize), "FID", options.inception, lacking)
    clip = _optional(lambda: ClipScorer(find_clip(options.clip), device=device), "CLIP", options.clip, lacking)
    lpips = None
    if "reconstruct" in tasks:
        given = options.alexnet or options.lpips
        lpips = _optional(lambda: load_lpips(options.alexnet, options.lpips), "LPIPS", given, lacking)
    if "generate" in tasks and clip is None and options.samples > 1:
        raise ValueError(
            f"--samples: the best of {options.samples} is taken by CLIP: {lacking['CLIP']}; or --samples 1 without one"
        )
    inception, lpips = (network if network is None else network.to(device) for network in (inception, lpips))
    return Judges(inception, lpips, clip, lacking)


def _optional(load: Callable[[], Any], metric: str, given: str | None, lacking: dict[str, str]) -> Any:
    try:
        return load()
    except WeightsError as error:
        if given is not None:
            raise
        lacking[metric] = str(error)
        return None


@contextmanager
def pictures_folder(output: str | None, task: str) -> Iterator[Path]:
    """Where the images of a task go: beside the output, or, without one, for as long as the block lasts."""
    if output not in (None, "-"):
        place = Path(f"{output}.pictures", task)
        place = Path(distributed.from_first(str(place)))
        place.mkdir(parents=True, exist_ok=True)
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="lavit-") as own:
        yield Path(distributed.from_first(own))
        distributed.barrier()  # until nobody reads it any more


def reconstruct(
    options: argparse.Namespace,
    folder: DataFolder,
    pipeline: LaVITPixelPipeline,
    judges: Judges,
    pictures: Path,
    journal: Journal | None,
    progress: Progress,
) -> TaskReport:
    if pipeline.image_processor is None:
        raise ValueError(f"{pipeline.name_or_path} has no image_processor, without which no image can be read")
    paths = folder.pictures()[: options.limit]
    return reconstruct_files(
        pipeline.tokenizer,
        pipeline.image_processor,
        _draw(pipeline, options),
        paths,
        pictures,
        judges,
        seed_of=lambda number: seed_of(options.seed, number),
        batch_size=options.batch_size,
        progress=progress,
        kept=_kept(journal, "reconstruct", pictures),
    )


def generate(
    options: argparse.Namespace,
    folder: DataFolder,
    model: Model,
    processor: Any,
    pipeline: LaVITPixelPipeline,
    judges: Judges,
    pictures: Path,
    journal: Journal | None,
    progress: Progress,
) -> tuple[TaskReport, list[tuple[str, str]]]:
    """The report, and the true images that could not be read."""
    check_same_codes(model.visual_tokenizer, pipeline.tokenizer, ("--model", "the pixel pipeline"))
    items = folder.captions[: options.limit]
    try:
        prompts = draw_prompts(items, options.prompts, options.seed)
    except ValueError as error:
        raise ValueError(f"--{error}") from None
    true, lost = None, list[Skipped]()
    if judges.inception is not None and len(items) > 1:
        paths = list(dict.fromkeys(item.image for item in items))
        about = {"network": of_weights(judges.inception), "resize": options.resize}
        if options.statistics is None or not Path(options.statistics).exists():
            about["images"] = fingerprint(paths, folder.images)
        true, lost = true_statistics(
            judges.inception, Files(paths), options.statistics, about, batch_size=options.batch_size
        )
    fewest = None if model.visual_tokenizer.num_patches >= RELEASED_PATCHES else 1
    chosen = {**SETTINGS, **only_given(guidance=options.guidance, top_k=options.top_k, min_tokens=fewest)}
    report = generate_files(
        model,
        processor,
        _draw(pipeline, options),
        prompts,
        pictures,
        judges.clip,
        samples=options.samples,
        inception=judges.inception,
        true=true,
        lacking={name: why for name, why in judges.lacking.items() if name != "LPIPS"},
        seed=options.seed,
        batch_size=options.batch_size,
        progress=progress,
        kept=_kept(journal, "generate", pictures),
        **chosen,
    )
    return report, [(item.name, item.reason) for item in lost]


def _draw(pipeline: LaVITPixelPipeline, options: argparse.Namespace) -> Draw:
    settings = only_given(num_inference_steps=options.steps, guidance_scale=options.pixel_guidance)
    return lambda codes, seeds, names: pixel_options.draw(pipeline, codes, seeds, names, settings)


def _kept(journal: Journal | None, task: str, pictures: Path) -> Any:
    """Results whose picture is gone are made again."""
    if journal is None:
        return None
    return journal.task(task, lambda row: (pictures / f"{row['number']}.png").is_file())
