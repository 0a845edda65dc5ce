"""The language stage of the quickstart: how it is trained, judged on held-out scenes, and how long that will take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavit.evaluation import (
    CellProbe,
    TaskReport,
    TokenStatistics,
    answer_scenes,
    caption_scenes,
    chance,
    edit_scenes,
    encode_images,
    generate_scenes,
    tokenize_and_decode,
)
from lavit.evaluation.vqa import normalize_answer
from lavit.quickstart.config import QuickstartConfig
from lavit.quickstart.pixels import BOTH, TEXT
from lavit.quickstart.timing import call_seconds, count_parameters, step_seconds
from lavit.report import Answer, LanguageResult, Rate, Request, Spoken
from lavit.shapes.edits import Edits
from lavit.shapes.probe import score
from lavit.shapes.world import Scenes, ShapesWorld, caption
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer
from lavit.training.language.data import ImageStore
from lavit.training.language.recipe import LanguageTrainingConfig
from lavit.training.language.train import LanguageTrainingResult, train_language

AT_ONCE = 100  # scenes: the time of a token hardly depends on their number
WORDS: dict[str, Any] = {"num_beams": 1}
TYPICAL = {"caption": 18, "answer": 3, "image": 40}
"""Tokens of the longest of a batch, for the estimate; a new model would not know where to end."""


@dataclass(frozen=True)
class HeldOut:
    """Scenes to judge on, as far as the tokenizer's evaluation knows them already.

    own: their tokens and what these decode to, maybe of more scenes after them. probe: has learned to read that. known:
    cells of the scenes that it learned from.
    """

    world: ShapesWorld
    scenes: Scenes
    own: TokenStatistics
    probe: CellProbe
    known: np.ndarray


def recipe_of(config: QuickstartConfig, device: torch.device) -> LanguageTrainingConfig:
    """Of the preset, with the run's overrides. Raises ValueError for one that draws no tokens."""
    recipe = LanguageTrainingConfig.recipe("small", {**config.language_recipe, **config.shared(device)})
    if recipe.objective != "classify":
        raise ValueError(f"language_recipe: expected the objective classify, got {recipe.objective!r}: it has no codes")
    recipe.edited = min(recipe.edited, recipe.scenes) if recipe.mixture.edit > 0 else 0
    return recipe


def judge(
    trained: LanguageTrainingResult,
    held_out: HeldOut,
    *,
    seed: int,
    shown: int,
    say: Callable[[str], None],
    pairs: Edits | None = None,
) -> tuple[LanguageResult, dict[str, list[list[int]]]]:
    """Captions, answers and images asked for of the held-out scenes, and those changes of scenes, each beside chance;
    and the tokens that were drawn for each scene, by what they were drawn for (TEXT, BOTH). ``say`` gets a line after
    each."""
    scenes, processor = held_out.scenes, trained.processor
    model: Any = trained.model  # whose methods are functions of other files: mypy does not see that they fit
    shared: dict[str, Any] = {"batch_size": AT_ONCE}

    captions = caption_scenes(model, processor, scenes, **shared, **WORDS)
    objects = _score(captions)["objects"]
    rates = {name: Rate(objects["score"][name], objects["constant"][name]) for name in ("exact", "recall", "precision")}
    say(f"captions of {len(scenes)} scenes: {rates['exact'].model:.3f} word for word right")

    answers = answer_scenes(model, processor, held_out.world, scenes, **shared, **WORDS)
    found = _score(answers)
    kinds = {"mean": found["overall"], **found["by_kind"]}
    right = {kind: Rate(share["accuracy"], share["constant"]) for kind, share in kinds.items()}
    say(f"answers to {len(answers.results)} questions: {right['mean'].model:.3f} right")

    drawn = generate_scenes(model, processor, scenes, held_out.probe, own=held_out.own, seed=seed, **shared)
    images = _image_rates(drawn, held_out, scenes.cells, held_out.own)
    say(f"images asked for: {images['recall'].model:.3f} of the objects are there")

    changed: dict[str, Any] = {}
    codes = {TEXT: drawn.codes}
    if pairs is not None:
        own = tokenize_and_decode(model.visual_tokenizer, encode_images(model, processor, pairs.after.images))
        report = edit_scenes(model, processor, pairs, held_out.probe, own=own, seed=seed, **shared)
        changed["edits"] = _image_rates(report, held_out, pairs.after.cells, own, pairs.wordless)
        changed["changes"] = _changes(report, pairs, shown)
        changed["edited_tokens"] = _score(report)["tokens"]
        codes[BOTH] = report.codes
        say(f"scenes changed as asked: {changed['edits']['scene'].model:.3f} with every cell right")

    trained_parts = {
        "language model": [model.language_model],
        "understanding merger": [model.understanding.causal_encoder],
        "projector": [model.understanding.vit_proj],
    }
    result = LanguageResult(
        scenes=len(scenes),
        questions=len(answers.results),
        captions=rates,
        readable=_score(captions)["readable"],
        answers=right,
        images=images,
        tokens=_score(drawn)["tokens"],
        parameters=count_parameters(trained_parts),
        steps=trained.history[-1]["step"],
        history=trained.history,
        settings={
            "captions": captions.settings,
            "answers": answers.settings,
            "images": {**model.config.image_sampling, **drawn.settings},
        },
        spoken=_spoken(scenes, captions, answers, shown),
        requests=[Request(one["prompt"], caption(one["cells"]), one["tokens"]) for one in drawn.results[:shown]],
        **changed,
    )
    return result, codes


def training_settings(recipe: LanguageTrainingConfig) -> dict[str, Any]:
    return {
        "scenes": recipe.scenes,
        "edited": recipe.edited,
        "mixture": recipe.mixture.shares,
        "token_budget": recipe.token_budget,
        "lr": recipe.schedule.lr,
    }


def estimates(
    config: QuickstartConfig,
    recipe: LanguageTrainingConfig,
    tokenizer: LaVITTokenizer,
    processor: LaVITImageProcessor,
    scenes: Scenes,
    features: Tensor,
) -> dict[str, float]:
    """Seconds of the two stages, from a few steps and a batch of each task on a throw-away tokenizer, which becomes a
    part of a throw-away model. scenes, features: a few scenes and what the tokenizer's encoder makes of them."""
    both = torch.cat([features, features]) if recipe.edited else features  # those of changed scenes take as long
    changed = len(scenes) if recipe.edited else 0
    few = replace(recipe, scenes=len(scenes), edited=changed, loop=replace(recipe.loop, steps=8, log_every=1))
    tokenized = call_seconds(lambda: ImageStore(tokenizer, features), 1) / len(features)
    given: dict[str, Any] = {"tokenizer": tokenizer, "processor": processor, "store": ImageStore(tokenizer, both)}
    trained: list[LanguageTrainingResult] = []
    step = step_seconds(lambda tick: trained.append(train_language(few, **given, progress=tick)))
    used: Any = trained[0].model
    own = trained[0].processor
    batch = min(AT_ONCE, config.language_scenes)
    images = [scenes.images[i % len(scenes)] for i in range(batch)]
    asked, wanted = ["how many objects are there?"] * batch, scenes.captions[:1] * batch

    def exactly(length: int, unit: str) -> dict[str, Any]:
        return {"batch_size": batch, f"min_{unit}": length, f"max_{unit}": length}

    caption_length, answer_length = ({**exactly(TYPICAL[task], "new"), **WORDS} for task in ("caption", "answer"))
    image_length = exactly(min(TYPICAL["image"], tokenizer.num_patches), "tokens")
    one = call_seconds(lambda: used.caption(images, own, **caption_length), 1)
    one += 4 * call_seconds(lambda: used.answer(images, asked, own, **answer_length), 1)
    one += (2 if recipe.edited else 1) * call_seconds(lambda: used.generate_tokens(wanted, own, **image_length), 1)
    return {
        "language": (recipe.scenes + recipe.edited) * tokenized + recipe.loop.steps * step,
        "reading and writing": config.language_scenes / batch * one,
    }


def _score(report: TaskReport) -> dict[str, Any]:
    assert report.score is not None  # one process, and scenes whose truth is known
    return report.score


def _image_rates(
    drawn: TaskReport, held_out: HeldOut, truth: np.ndarray, own: TokenStatistics, guesses: Sequence[np.ndarray] = ()
) -> dict[str, Rate]:
    """truth: cells of the scenes asked for. own: of these scenes. guesses: cells that count as chance, too."""
    reported = _score(drawn)
    found, true = reported["objects"], reported["true_tokens"]["score"]
    guessed = reported.get("wordless", found["constant"])
    cells = np.array([one["cells"] for one in drawn.results])
    by_chance = max(chance(held_out.known, truth).cell, *(score(guess, truth).cell for guess in guesses), 0.0)
    decoded = own.decoded[: len(truth)]
    rates = {"cell": Rate(score(cells, truth).cell, by_chance, held_out.probe.score(decoded, truth).cell)}
    for name, figure in (("scene", "exact"), ("recall", "recall"), ("precision", "precision")):
        rates[name] = Rate(found["score"][figure], guessed[figure], true[figure])
    return rates


def _changes(changed: TaskReport, pairs: Edits, shown: int) -> list[Request]:
    images, wanted = pairs.before.images, pairs.after.captions
    return [
        Request(
            one["prompt"], caption(one["cells"]), one["tokens"], image=images[one["scene"]], wanted=wanted[one["scene"]]
        )
        for one in changed.results[:shown]
    ]


def _spoken(scenes: Scenes, captions: TaskReport, answers: TaskReport, shown: int) -> list[Spoken]:
    spoken = [Spoken(scenes.images[one["scene"]], one["true"], one["caption"]) for one in captions.results[:shown]]
    for one in answers.results:
        if one["scene"] < len(spoken):
            same = normalize_answer(one["answer"]) == normalize_answer(one["true"])
            spoken[one["scene"]].answers.append(Answer(one["text"], one["true"], one["answer"], same))
    return spoken
