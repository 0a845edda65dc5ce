"""What a whole model can do: captions, answers and drawn images, of a folder or of the shapes world, judged.

Every function works on all processes that torchrun started, and gives each of them the report; a score is computed by
the first process alone, the others have None. Items that cannot be used are named and left out. ``kept`` is a journal
of results that an interrupted run left, and that this one adds to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lavit.data.annotations import CaptionItem, VQAItem
from lavit.data.images import load_image
from lavit.data.stream import seed_of as seed_of
from lavit.evaluation.captioning import score_captions, score_scene_captions
from lavit.evaluation.journal import TaskJournal
from lavit.evaluation.runner import Evaluated, Skipped, evaluate_items
from lavit.evaluation.text_to_image import score_generated_scenes
from lavit.evaluation.token_statistics import TokenStatistics, tokenize_and_decode
from lavit.evaluation.vqa import evaluate_vqa, score_scene_answers, vqa_accuracy
from lavit.shapes.edits import Edits
from lavit.shapes.probe import CellProbe, train_probe
from lavit.shapes.questions import questions
from lavit.shapes.scores import score_scenes
from lavit.shapes.world import Scenes, ShapesWorld
from lavit.tokenizer import processing
from lavit.training.engine import distributed

Progress = Callable[[int, int], None]
Item = TypeVar("Item", CaptionItem, VQAItem)
R = TypeVar("R")


SHORT: dict[str, Any] = {"min_new": 1}
"""Captions and answers of the shapes world may be shorter than the release allows, of a model that says nothing."""
SMALL: dict[str, Any] = {"min_tokens": 1}
"""So may its images."""


class Model(Protocol):
    """What a `lavit.LaVIT` can do."""

    config: Any
    visual_tokenizer: Any

    def caption(self, images: Any, processor: Any, **settings: Any) -> Sequence[str]: ...
    def answer(self, images: Any, questions: Sequence[str], processor: Any, **settings: Any) -> Sequence[str]: ...
    def generate_tokens(self, prompts: Sequence[Any], processor: Any, **settings: Any) -> Any: ...


@dataclass(frozen=True)
class Shown:
    """An item as a person may look at it: picture files side by side, its score (more is better) and how that is told,
    and a few texts."""

    pictures: list[str]
    score: float
    told: str
    words: list[str]


@dataclass(frozen=True)
class TaskReport:
    """score: as the scorers' ``as_dict`` have it; None on other processes than the first, and where nothing is known
    to judge by. results: an entry for each item, captions and answers in the form of COCO's and VQAv2's result files.
    skipped: items without one. settings: what was asked of the model, beyond its defaults. codes: of images drawn, the
    tokens of each result. shown: of items with a score of their own, for a sheet; of the first process. Neither is part
    of ``as_dict``. item_scores: of each result, where items have a score of their own."""

    score: dict[str, Any] | None
    results: list[dict[str, Any]]
    skipped: list[Skipped] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    codes: list[list[int]] = field(default_factory=list)
    item_scores: list[float] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "score": self.score,
            "evaluated": len(self.results),
            "skipped": [item.as_dict() for item in self.skipped],
            "settings": self.settings,
            "results": self.results,
            "item_scores": self.item_scores,
        }


class Pictures(Generic[Item]):
    """Items with their images, read when they are taken."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items: Sequence[Item] = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Item, Image.Image]:
        item = self.items[index]
        return item, load_image(item.image)

    def name(self, index: int) -> str:
        item = self.items[index]
        return f"question {item.question_id} on {item.image}" if isinstance(item, VQAItem) else str(item.image)


def caption_folder(
    model: Model,
    processor: Any,
    items: Sequence[CaptionItem],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
    kept: TaskJournal | None = None,
    **settings: Any,
) -> TaskReport:
    """Captions of image files, judged as `lavit.evaluation.score_captions` does, where people's captions are known.
    settings: of ``LaVIT.caption``. Images that NoCaps puts in domains are judged in each domain by themselves, too.
    An item's own score is its CIDEr, or its F1 where there is no CIDEr.

    Raises ValueError where not a single image could be captioned.
    """

    def run(batch: list[tuple[CaptionItem, Image.Image]]) -> list[str]:
        return list(model.caption([image for _, image in batch], processor, batch_size=len(batch), **settings))

    done = _all(Pictures(items), run, batch_size, progress, kept)
    told = [(items[index], text) for index, text in done.results.items()]
    results = [{"image_id": item.image_id, "caption": text} for item, text in told]
    score, each, figure = None, [], "CIDEr"
    if distributed.rank() == 0 and all(item.captions for item, _ in told):
        score = _caption_score(told)
        each, f1 = score.pop("each"), score["words"].pop("each")
        if not each:
            each, figure = f1, "F1"
        if groups := sorted({item.group for item, _ in told if item.group}):
            score["by_domain"] = {group: _domain([one for one in told if one[0].group == group]) for group in groups}
    shown = [
        Shown([str(item.image)], value, f"{figure} {value:.3f}", [text, f"people: {item.captions[0]}"])
        for (item, text), value in zip(told, each, strict=False)
    ]
    return TaskReport(score, results, done.skipped, settings, item_scores=each, shown=shown)


def _caption_score(told: Sequence[tuple[CaptionItem, str]]) -> dict[str, Any]:
    captions = {item.image_id: text for item, text in told}
    return score_captions(captions, {item.image_id: item.captions for item, _ in told}).as_dict()


def _domain(told: Sequence[tuple[CaptionItem, str]]) -> dict[str, float]:
    score = _caption_score(told)
    return {**score["scores"], "exact": score["words"]["exact"], "F1": score["words"]["f1"]}


ANSWERABLE = 'Is the question: "{}" answerable?'
"""What the release asks of VizWiz's images first; with "no" in what is said, the answer is the next."""
UNANSWERABLE = "unanswerable"


def answer_folder(
    model: Model,
    processor: Any,
    items: Sequence[VQAItem],
    *,
    answerable_first: bool = False,
    lemmatize: Callable[[str], str] | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
    kept: TaskJournal | None = None,
    **settings: Any,
) -> TaskReport:
    """Answers to questions about image files, judged by the standard accuracy where people's answers are known.
    settings: of ``LaVIT.answer``.

    answerable_first: the questions are VizWiz's: the model is asked, as in the release, whether each can be answered,
        and where it says no, that is the answer; results name the image.
    lemmatize: made of the answers and, to judge them, of what people answered, as the release has it.
    Raises ValueError where not a single question could be answered.
    """

    def run(batch: list[tuple[VQAItem, Image.Image]]) -> list[str]:
        images, asked = [image for _, image in batch], [item.question for item, _ in batch]
        shared = {"batch_size": len(batch), **settings}
        answers = list(model.answer(images, asked, processor, **shared))
        if lemmatize is not None:
            answers = [lemmatize(text) for text in answers]
        if answerable_first:
            said = model.answer(images, [ANSWERABLE.format(text) for text in asked], processor, **shared)
            pairs = zip(answers, said, strict=True)
            answers = [UNANSWERABLE if "no" in word.lower() else answer for answer, word in pairs]
        return answers

    done = _all(Pictures(items), run, batch_size, progress, kept)
    told = [(items[index], text) for index, text in done.results.items()]
    key = "image" if answerable_first else "question_id"
    results = [{key: item.question_id, "answer": text} for item, text in told]
    score, each = None, []
    if distributed.rank() == 0 and all(item.answers for item in items):
        if lemmatize is not None:
            known = {text: lemmatize(text) for text in {text for item, _ in told for text in item.answers}}
            told = [(replace(item, answers=tuple(known[one] for one in item.answers)), text) for item, text in told]
        answers: dict[Hashable, str] = {item.question_id: text for item, text in told}
        score = evaluate_vqa((item for item, _ in told), answers).as_dict()
        each = [vqa_accuracy(text, item.answers) for item, text in told]
    shown = []
    for (item, text), value in zip(told, each, strict=False):
        words = [item.question, f"answer: {text}", f"people: {_usual(item.answers)}"]
        shown.append(Shown([str(item.image)], value, f"accuracy {value:.2f}", words))
    return TaskReport(score, results, done.skipped, settings, item_scores=each, shown=shown)


def _usual(answers: Sequence[str]) -> str:
    """What most people answered, at most three."""
    return ", ".join(text for text, _ in Counter(answers).most_common(3))


def caption_scenes(
    model: Model,
    processor: Any,
    scenes: Scenes,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
    kept: TaskJournal | None = None,
    **settings: Any,
) -> TaskReport:
    """Captions of the shapes world's scenes, by what they say is where, beside chance."""
    asked = {**({} if getattr(model, "generation_config", None) else SHORT), **settings}

    def run(batch: list[int]) -> list[str]:
        return list(model.caption([scenes.images[i] for i in batch], processor, batch_size=len(batch), **asked))

    done = _all(range(len(scenes)), run, batch_size, progress, kept, "scene {}")
    found = list(done.results)
    score = score_scene_captions(list(done.results.values()), scenes.cells[found]).as_dict()
    true = scenes.captions
    results = [{"scene": index, "caption": text, "true": true[index]} for index, text in done.results.items()]
    return TaskReport(_of_first(score), results, done.skipped, asked)


def answer_scenes(
    model: Model,
    processor: Any,
    world: ShapesWorld,
    scenes: Scenes,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
    kept: TaskJournal | None = None,
    **settings: Any,
) -> TaskReport:
    """Answers to the four questions on each of the world's first scenes, by kind, beside chance."""
    chosen = {**({} if getattr(model, "answer_generation_config", None) else SHORT), **settings}
    asked = [(scene, one) for scene, each in enumerate(questions(world, scenes.cells)) for one in each]

    def run(batch: list[int]) -> list[str]:
        images, texts = [scenes.images[asked[i][0]] for i in batch], [asked[i][1].text for i in batch]
        return list(model.answer(images, texts, processor, batch_size=len(batch), **chosen))

    done = _all(range(len(asked)), run, batch_size, progress, kept, "question {}")
    score = score_scene_answers([asked[i][1] for i in done.results], list(done.results.values())).as_dict()
    results = [
        {"scene": asked[i][0], **asked[i][1].as_dict(), "true": asked[i][1].answer, "answer": text}
        for i, text in done.results.items()
    ]
    return TaskReport(_of_first(score), results, done.skipped, chosen)


def generate_scenes(
    model: Model,
    processor: Any,
    scenes: Scenes,
    probe: CellProbe,
    *,
    prompts: Sequence[Any] | None = None,
    own: TokenStatistics | None = None,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
    kept: TaskJournal | None = None,
    **settings: Any,
) -> TaskReport:
    """Images drawn for the captions of scenes, by the objects that a probe reads from their decoded features.

    probe: of `decoded_probe`. prompts: what asks for each scene instead of its caption, a text or [image, text].
    own: of the scenes' images, as `tokenize_and_decode` gives them, if that is done already.
    seed: of the images; scene i has its own, whatever the batch and the number of processes.
    In the score ``objects`` is of the images drawn, beside chance; ``true_tokens`` of the scenes' own tokens, decoded:
    what the tokenizer loses and the probe mistakes; ``tokens`` their mean numbers.
    """
    asked: Sequence[Any] = scenes.captions if prompts is None else prompts
    texts = [prompt if isinstance(prompt, str) else prompt[-1] for prompt in asked]
    chosen = {**SMALL, **settings}
    device = next(probe.parameters()).device

    def run(batch: list[int]) -> list[tuple[list[int], list[int]]]:
        seeds = [seed_of(seed, i) for i in batch]
        drawn = model.generate_tokens(
            [asked[i] for i in batch], processor, seeds=seeds, batch_size=len(batch), **chosen
        ).codes
        with torch.no_grad():
            read = probe.read(model.visual_tokenizer.decode(drawn).float().to(device)).tolist()
        return list(zip(read, [ids.tolist() for ids in drawn.to("cpu").unbind()], strict=True))

    done = _all(range(len(scenes)), run, batch_size, progress, kept, "scene {}")
    found = list(done.results)
    cells = np.array([read for read, _ in done.results.values()], dtype=np.int64)
    codes = [ids for _, ids in done.results.values()]
    if own is None:
        own = tokenize_and_decode(model.visual_tokenizer, encode_images(model, processor, scenes.images))
    score = {
        "objects": score_scenes(cells, scenes.cells[found]).as_dict(),
        "true_tokens": score_generated_scenes(probe, own.decoded[found].float(), scenes.cells[found]).as_dict(),
        "tokens": {
            "drawn": float(np.mean([len(ids) for ids in codes])),
            "true": float(own.tokens[found].mean()),
        },
    }
    results = [
        {"scene": i, "prompt": texts[i], "cells": read, "tokens": len(ids)} for i, (read, ids) in done.results.items()
    ]
    return TaskReport(_of_first(score), results, done.skipped, chosen, codes)


def edit_scenes(
    model: Model,
    processor: Any,
    pairs: Edits,
    probe: CellProbe,
    *,
    own: TokenStatistics | None = None,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
    kept: TaskJournal | None = None,
    **settings: Any,
) -> TaskReport:
    """Images drawn for an image and the words that ask for one change of it, as `generate_scenes` judges them.

    own: of the changed images. In the score ``wordless`` is the most, figure by figure, that guesses score which look
    at the image but do not read the words.
    """
    prompts = [[image, text] for image, text in zip(pairs.before.images, pairs.texts, strict=True)]
    shared: dict[str, Any] = {"own": own, "seed": seed, "batch_size": batch_size, "progress": progress, "kept": kept}
    shared |= settings
    report = generate_scenes(model, processor, pairs.after, probe, prompts=prompts, **shared)
    if report.score is not None:
        found = [one["scene"] for one in report.results]
        truth = pairs.after.cells[found]
        guesses = [score_scenes(cells[found], truth).score.as_dict() for cells in pairs.wordless]
        guesses.append(report.score["objects"]["constant"])
        report.score["wordless"] = {figure: max(guess[figure] for guess in guesses) for figure in guesses[0]}
    return report


def decoded_probe(model: Model, processor: Any, scenes: Scenes, *, steps: int = 400, seed: int = 0) -> CellProbe:
    """A probe that has learned to read scenes from what their tokens decode to; the same on all processes."""
    decoded = tokenize_and_decode(model.visual_tokenizer, encode_images(model, processor, scenes.images)).decoded
    probe = train_probe(decoded.float(), scenes.cells, steps=steps, seed=seed)
    distributed.share(probe.state_dict().values())
    return probe


def encode_images(model: Model, processor: Any, images: np.ndarray) -> Tensor:
    """Images (n, H, W, 3) uint8 -> features (n, N, C) of the frozen encoder. Raises ValueError for none."""
    return processing.encode_images(model.visual_tokenizer, processor.image_processor, images)


def _all(
    items: Any,
    function: Callable[[list[Any]], Sequence[R]],
    batch_size: int,
    progress: Progress | None,
    kept: TaskJournal | None,
    name: str | None = None,
) -> Evaluated[R]:
    naming = None if name is None else name.format
    workers = None if isinstance(items, Pictures) else 0
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "kept": kept, "workers": workers}
    done = evaluate_items(items, function, name=naming, **options)
    if not done.results:
        first = f"; {done.skipped[0].name}: {done.skipped[0].reason}" if done.skipped else ""
        raise ValueError(f"items: none of {len(items)} could be used{first}")
    return done


def _of_first(score: Mapping[str, Any]) -> dict[str, Any] | None:
    return dict(score) if distributed.rank() == 0 else None
