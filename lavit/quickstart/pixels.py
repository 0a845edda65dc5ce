"""The pixel stage of the quickstart: how it is trained, judged on held-out scenes, and how long that will take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavit.evaluation.tasks import seed_of
from lavit.kernels import Ragged
from lavit.pixels import LaVITPixelPipeline
from lavit.pixels.pipeline import STEPS
from lavit.quickstart.config import QuickstartConfig
from lavit.quickstart.timing import call_seconds, count_parameters, step_seconds
from lavit.report import Painting, PixelsResult, Rate
from lavit.shapes.edits import Edits
from lavit.shapes.judge import UNCLEAR, Drawn, Rates, SceneReader, score_cells
from lavit.shapes.world import Scenes, caption
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer
from lavit.training.pixels.recipe import PixelsTrainingConfig
from lavit.training.pixels.train import PixelsTrainingResult, train_pixels

AT_ONCE = 50

TEXT, BOTH, IMAGE = "text", "image and text", "image"
"""What an image is made from: its caption; another image and the words for one change of it; the true image, by way of
its tokens, which is the most that the others can be expected to reach."""


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
    scenes: Scenes,
    written: Mapping[str, Sequence[Sequence[int]]],
    *,
    seed: int,
    shown: int,
    say: Callable[[str], None],
    pairs: Edits | None = None,
) -> PixelsResult:
    """Images made in every way, read by a program that knows the world's shapes. ``say`` gets a line after each way.

    written: way (TEXT, BOTH) -> the tokens that the language stage drew for each scene, maybe for more; without any,
    images are made from images alone. pairs: the scenes and what they are to be changed to, where BOTH is written.
    """
    pipeline, reader = trained.pipeline, SceneReader()
    seeds = [seed_of(seed, i) for i in range(len(scenes))]
    pictures: dict[str, np.ndarray] = {}
    read: dict[str, np.ndarray] = {}
    scores: dict[str, Drawn] = {}
    rates: dict[str, dict[str, Rate]] = {}

    def judged(way: str, truth: np.ndarray, **source: Any) -> Drawn:
        pictures[way] = _paint(pipeline, seeds, **source)
        read[way] = reader.read(pictures[way])
        scores[way] = found = score_cells(read[way], truth)
        say(f"images from {way}: {found.object_recall:.3f} of the objects are there, {found.scene:.3f} all right")
        return found

    again = judged(IMAGE, scenes.cells, images=scenes.images)
    rates[IMAGE] = _rates(again, None)
    words = {} if pairs is None else {BOTH: pairs.texts}
    wanted = {} if pairs is None else {BOTH: pairs.after.captions}
    if TEXT in written:
        rates[TEXT] = _rates(judged(TEXT, scenes.cells, codes=written[TEXT]), again)
    if pairs is not None:
        after = pairs.after
        most = reader.score(_paint(pipeline, seeds, images=after.images), after.cells)
        guesses = [score_cells(guess, after.cells).rates for guess in pairs.wordless]
        rates[BOTH] = _rates(judged(BOTH, after.cells, codes=written[BOTH]), most, guesses)
    return PixelsResult(
        scenes=len(scenes),
        ways=rates,
        unclear={way: score.unclear for way, score in scores.items()},
        parameters=count_parameters({"U-Net": [pipeline.unet], "condition head": [pipeline.conditioner]}),
        steps=trained.history[-1]["step"],
        history=trained.history,
        settings={"painting": {name: pipeline.config[name] for name in ("default_steps", "default_guidance")}},
        paintings=[
            Painting(
                scenes.images[i],
                scenes.captions[i],
                {way: pictures[way][i] for way in pictures},
                {way: in_words(read[way][i]) for way in pictures},
                {way: texts[i] for way, texts in words.items()},
                {way: captions[i] for way, captions in wanted.items()},
            )
            for i in range(min(shown, len(scenes)))
        ],
    )


def in_words(cells: np.ndarray) -> str:
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
    times: int,
) -> dict[str, float]:
    """Seconds of the two stages, from a few steps and a few images of a throw-away tokenizer. times: that each scene is
    painted."""
    few = replace(recipe, scenes=len(scenes), loop=replace(recipe.loop, steps=6, log_every=1))
    trained: list[PixelsTrainingResult] = []
    step = step_seconds(lambda tick: trained.append(learn(few, tokenizer, processor, scenes.images, features, tick)))
    batch, steps = min(16, config.painted_scenes), 3
    pipeline = trained[0].pipeline
    settings: dict[str, Any] = {"num_inference_steps": steps, "output_type": "np"}
    painted = call_seconds(lambda: pipeline(images=scenes.images[:batch], seeds=range(batch), **settings), 1)
    images = times * config.painted_scenes / batch * painted * (recipe.draw_steps or STEPS) / steps
    return {"pixels": recipe.loop.steps * step, "painting": images}


def _paint(
    pipeline: LaVITPixelPipeline,
    seeds: Sequence[int],
    *,
    images: np.ndarray | None = None,
    codes: Sequence[Sequence[int]] = (),
) -> np.ndarray:
    """(n, H, W, 3) uint8, one for each seed, of images by way of their tokens, or of codes."""
    parts = []
    for begin in range(0, len(seeds), AT_ONCE):
        rows = slice(begin, min(begin + AT_ONCE, len(seeds)))
        if images is None:
            ragged = Ragged.from_list([torch.tensor(ids, dtype=torch.int64) for ids in codes[rows]])
            painted: Any = pipeline(ragged, seeds=seeds[rows], output_type="np")
        else:
            painted = pipeline(images=images[rows], seeds=seeds[rows], output_type="np")
        parts.append(np.rint(painted.images * 255).astype(np.uint8))
    return np.concatenate(parts)


def _rates(score: Drawn, most: Drawn | None, guesses: Sequence[Rates] = ()) -> dict[str, Rate]:
    """Beside the best of what guessing has, these guesses among it, and what images made again reach."""
    rates = {}
    for ours, theirs in (("scene", "scene"), ("recall", "object_recall"), ("cell", "cell")):
        chance = max(getattr(guess, theirs) for guess in (score.constant, score.other, *guesses))
        ceiling = {} if most is None else {"ceiling": getattr(most, theirs)}
        rates[ours] = Rate(getattr(score, theirs), chance, **ceiling)
    return rates
