"""The pixel stage of the quickstart: how it is trained, judged on held-out scenes, and how long that will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavit.data.edits import Edits
from lavit.data.shapes import Scenes, caption
from lavit.evaluation.drawn import UNCLEAR, Drawn, Rates, SceneReader, score_cells
from lavit.evaluation.language import SMALL, seed_of
from lavit.kernels import Ragged
from lavit.pixels import LaVITPixelPipeline
from lavit.pixels.pipeline import STEPS
from lavit.quickstart.config import QuickstartConfig
from lavit.quickstart.timing import call_seconds, step_seconds
from lavit.report import Painting, PixelsResult, Rate
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer
from lavit.training.language import LanguageTrainingResult
from lavit.training.pixels import PixelsTrainingConfig, PixelsTrainingResult, train_pixels

AT_ONCE = 50

TEXT, BOTH, IMAGE = "text", "image and text", "image"
"""What an image is made from: its caption; another image and the words for one change of it; the true image, by way of
its tokens, which is the most that the others can be expected to reach."""


def recipe_of(config: QuickstartConfig, device: torch.device) -> PixelsTrainingConfig:
    """Of the preset, with the run's overrides."""
    recipe = PixelsTrainingConfig.recipe("small", config.pixels_recipe)
    recipe.seed, recipe.device, recipe.output = config.seed, str(device), None
    recipe.scenes = config.train_scenes
    return recipe


def learn(
    recipe: PixelsTrainingConfig,
    tokenizer: LaVITTokenizer,
    processor: LaVITImageProcessor,
    images: np.ndarray,
    features: Tensor,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> PixelsTrainingResult:
    """Train on images (n, H, W, 3) and their features (n, N, C); ``tokenizer`` becomes a part of the pipeline."""
    count = min(recipe.scenes, len(images), len(features))
    trained = train_pixels(
        recipe,
        tokenizer=tokenizer,
        processor=processor,
        images=images[:count],
        features=features[:count],
        progress=progress,
    )
    trained.pipeline.set_progress_bar_config(disable=True)
    return trained


def judge(
    trained: PixelsTrainingResult,
    spoken: LanguageTrainingResult | None,
    pairs: Edits,
    *,
    seed: int,
    shown: int,
    say: Callable[[str], None],
    edited: bool = True,
) -> PixelsResult:
    """Images made in every way, read by a program that knows the world's shapes. ``say`` gets a line after each way.

    spoken: the language stage; without it images are made from images alone. pairs: held-out scenes, and what they are
    to be changed to. edited: the language stage has learned that.
    """
    pipeline, reader, scenes = trained.pipeline, SceneReader(), pairs.before
    seeds = [seed_of(seed, i) for i in range(len(scenes))]
    pictures: dict[str, np.ndarray] = {}
    read: dict[str, np.ndarray] = {}
    scores: dict[str, Drawn] = {}
    ways = [IMAGE, *([TEXT] if spoken is not None else []), *([BOTH] if spoken is not None and edited else [])]
    for way in ways:
        pictures[way] = np.concatenate(
            [_paint(pipeline, codes, seeds[rows]) for rows, codes in _codes(way, pipeline, spoken, pairs, seeds)]
        )
        read[way] = reader.read(pictures[way])
        scores[way] = found = score_cells(read[way], pairs.after.cells if way == BOTH else scenes.cells)
        say(f"images from {way}: {found.object_recall:.3f} of the objects are there, {found.scene:.3f} all right")
    unchanged = score_cells(scenes.cells, pairs.after.cells).rates
    texts, wanted = pairs.texts, pairs.after.captions
    return PixelsResult(
        scenes=len(scenes),
        ways={
            way: _rates(score, None if way == IMAGE else scores[IMAGE], [unchanged] if way == BOTH else [])
            for way, score in scores.items()
        },
        unclear={way: score.unclear for way, score in scores.items()},
        parameters=_parameters(pipeline),
        steps=trained.history[-1]["step"],
        history=trained.history,
        settings={"painting": {name: pipeline.config[name] for name in ("default_steps", "default_guidance")}},
        paintings=[
            Painting(
                scenes.images[i],
                scenes.captions[i],
                {way: pictures[way][i] for way in pictures},
                {way: words(read[way][i]) for way in pictures},
                {BOTH: texts[i]} if BOTH in pictures else {},
                {BOTH: wanted[i]} if BOTH in pictures else {},
            )
            for i in range(min(shown, len(scenes)))
        ],
    )


def words(cells: np.ndarray) -> str:
    """What the program sees, in the world's words, and where it cannot tell."""
    unclear = int((cells == UNCLEAR).sum())
    said = caption(np.where(cells == UNCLEAR, 0, cells).tolist())
    if not unclear:
        return said
    what = f"{unclear} unclear place{'s' if unclear > 1 else ''}"
    return what if (cells <= 0).all() else f"{said} and {what}"


def estimates(
    config: QuickstartConfig,
    recipe: PixelsTrainingConfig,
    tokenizer: LaVITTokenizer,
    processor: LaVITImageProcessor,
    scenes: Scenes,
    features: Tensor,
) -> dict[str, float]:
    """Seconds of the two stages, from a few steps and a few images of a throw-away tokenizer."""
    few = replace(recipe, scenes=len(scenes), loop=replace(recipe.loop, steps=6, log_every=1))
    trained: list[PixelsTrainingResult] = []
    step = step_seconds(lambda tick: trained.append(learn(few, tokenizer, processor, scenes.images, features, tick)))
    batch, steps = min(16, config.pixels_scenes), 3
    pipeline = trained[0].pipeline
    settings: dict[str, Any] = {"num_inference_steps": steps, "output_type": "np"}
    painted = call_seconds(lambda: pipeline(images=scenes.images[:batch], seeds=range(batch), **settings), 1)
    ways = 3 if config.language else 1
    images = ways * config.pixels_scenes / batch * painted * (recipe.draw_steps or STEPS["lowres"]) / steps
    return {"pixels": recipe.loop.steps * step, "painting": images}


def _codes(
    way: str, pipeline: LaVITPixelPipeline, spoken: LanguageTrainingResult | None, pairs: Edits, seeds: list[int]
) -> Iterator[tuple[slice, Ragged]]:
    """A batch of scenes at a time, and the codes that their images are made from."""
    scenes = pairs.before
    prompts: list[Any] = list(scenes.captions)
    if way == BOTH:
        prompts = [[image, text] for image, text in zip(scenes.images, pairs.texts, strict=True)]
    for begin in range(0, len(scenes), AT_ONCE):
        rows = slice(begin, min(begin + AT_ONCE, len(scenes)))
        if way == IMAGE:
            tokenizer, processor = pipeline.tokenizer, pipeline.image_processor
            assert processor is not None
            pixels = processor(scenes.images[rows]).to(tokenizer.quantize.embedding.weight.device)
            yield rows, tokenizer.encode(pixels, deterministic=True).ragged()
            continue
        assert spoken is not None
        model: Any = spoken.model
        settings = {**SMALL, "seeds": seeds[rows], "batch_size": AT_ONCE}
        yield rows, model.generate_tokens(prompts[rows], spoken.processor, **settings).codes


def _paint(pipeline: LaVITPixelPipeline, codes: Ragged, seeds: list[int]) -> np.ndarray:
    """(n, H, W, 3) uint8."""
    painted: Any = pipeline(codes, seeds=seeds, output_type="np")
    return np.rint(painted.images * 255).astype(np.uint8)


def _rates(score: Drawn, most: Drawn | None, guesses: list[Rates]) -> dict[str, Rate]:
    """Beside the best of what guessing has, these guesses among it, and what images made again reach."""
    rates = {}
    for ours, theirs in (("scene", "scene"), ("recall", "object_recall"), ("cell", "cell")):
        chance = max(getattr(guess, theirs) for guess in (score.constant, score.other, *guesses))
        ceiling = {} if most is None else {"ceiling": getattr(most, theirs)}
        rates[ours] = Rate(getattr(score, theirs), chance, **ceiling)
    return rates


def _parameters(pipeline: LaVITPixelPipeline) -> dict[str, int]:
    """What this stage trained."""
    parts: dict[str, Any] = {"U-Net": pipeline.unet, "condition head": pipeline.conditioner}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
