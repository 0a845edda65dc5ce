"""Images drawn for the captions of a data set, the best of several by CLIP, and FID against its images: the protocol of
30 000 captions of COCO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lavit.data.annotations import CaptionItem
from lavit.data.images import BLACKENED
from lavit.evaluation.frechet import Statistics, distance
from lavit.evaluation.journal import TaskJournal
from lavit.evaluation.picture_sets import Files, picture_statistics
from lavit.evaluation.protocol import PROMPTS, SAMPLES
from lavit.evaluation.reconstruction import Draw, blackened, write_png
from lavit.evaluation.runner import evaluate_items
from lavit.evaluation.tasks import Model, Progress, Shown, TaskReport, seed_of
from lavit.evaluation.text_to_image import Scorer, rerank
from lavit.training.engine import distributed


@dataclass(frozen=True)
class Prompt:
    """A caption, and the image that it is of."""

    item: CaptionItem
    text: str


def draw_prompts(items: Sequence[CaptionItem], count: int | None, seed: int) -> list[Prompt]:
    """``count`` captions by the seed; None: 30 000, or one of each image where there are fewer images.

    As long as there are images enough, each is of another image; beyond that, each is another caption. The same seed
    and items give the same prompts, and fewer are the first of more.
    Raises ValueError for more than there are captions, and for no caption.
    """
    told = [item for item in items if item.captions]
    total = sum(len(item.captions) for item in told)
    wanted = min(PROMPTS, len(told)) if count is None else count
    if wanted < 1 or wanted > total:
        raise ValueError(f"prompts: expected 1 to {total}, the captions that there are, got {wanted}")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(told))
    places = [generator.permutation(len(told[i].captions)) for i in order]
    rounds = max(len(item.captions) for item in told)
    drawn: list[Prompt] = []
    for turn in range(rounds):  # one caption of every image, then another of every one that has one
        for i, own in zip(order, places, strict=True):
            if len(drawn) == wanted:
                return drawn
            if turn < len(own):
                drawn.append(Prompt(told[i], told[i].captions[own[turn]].strip()))
    return drawn


def generate_files(
    model: Model,
    processor: Any,
    draw: Draw,
    prompts: Sequence[Prompt],
    pictures: Path,
    scorer: Scorer | None,
    *,
    samples: int = SAMPLES,
    inception: Any = None,
    true: Statistics | None = None,
    lacking: dict[str, str] | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress | None = None,
    kept: TaskJournal | None = None,
    **settings: Any,
) -> TaskReport:
    """An image for each prompt: the best of ``samples`` by the scorer.

    pictures: an existing folder, which gets the best ones as 0.png, 1.png, ... by the number of the prompt.
    scorer: None where there is none, with one sample each. inception, true: for FID, the network and the statistics of
    true images, None for fewer than two. lacking: why a network is not there. batch_size: images at a time.
    Sample s of prompt i depends on the seed, i and s, not on the batch, the processes or the number of samples.
    Raises ValueError for several samples without a scorer, and where not a single prompt could be used.
    """
    if samples > 1 and scorer is None:
        raise ValueError(f"samples: the best of {samples} is taken by CLIP, which is not there")

    def run(batch: list[int]) -> list[dict[str, Any]]:
        texts = [prompts[i].text for i in batch for _ in range(samples)]
        seeds = [seed_of(seed_of(seed, i), sample) for i in batch for sample in range(samples)]
        drawn = model.generate_tokens(texts, processor, seeds=seeds, batch_size=len(texts), **settings).codes
        images = list(draw(drawn, seeds, texts))
        codes = [ids.tolist() for ids in drawn.to("cpu").unbind()]
        groups = [images[begin : begin + samples] for begin in range(0, len(images), samples)]
        asked = [prompts[i].text for i in batch]
        ranked = [None] * len(batch) if scorer is None else rerank(asked, groups, scorer, batch_size=batch_size)
        found: list[dict[str, Any]] = []
        for place, (i, group, rank) in enumerate(zip(batch, groups, ranked, strict=True)):
            best = 0 if rank is None else rank.best
            write_png(group[best], pictures / f"{i}.png")
            row = {"number": i, "best": best, "tokens": len(codes[place * samples + best]), **blackened(group[best])}
            found.append(row | ({} if rank is None else {"clip": list(rank.scores)}))
        return found

    together = max(1, batch_size // samples)
    name = "prompt {}".format
    done = evaluate_items(range(len(prompts)), run, batch_size=together, name=name, progress=progress, kept=kept)
    if not done.results:
        raise ValueError(f"prompts: none of {len(prompts)} could be drawn; {done.skipped[0].reason}")
    rows = list(done.results.values())
    results = [
        {"image_id": prompts[i].item.image_id, "prompt": prompts[i].text, "file": str(pictures / f"{i}.png")}
        | {key: value for key, value in row.items() if key != "number"}
        for i, row in done.results.items()
    ]
    skipped = dict(lacking or {})
    figures: dict[str, float] = {}
    if inception is not None:
        if true is None or len(rows) < 2:
            skipped["FID"] = "needs at least two images"
        else:
            files = Files([Path(row["file"]) for row in results])
            made, lost = picture_statistics(inception, files, batch_size=batch_size)
            if lost:
                raise ValueError(f"images drawn: {lost[0].name} could not be read again: {lost[0].reason}")
            figures["FID"] = distance(true, made)
    each = [max(row["clip"]) for row in rows if "clip" in row]
    if each:
        figures["CLIP score"] = float(np.mean(each))
        figures["CLIP score of all samples"] = float(np.mean([value for row in rows for value in row["clip"]]))
    figures["tokens"] = float(np.mean([row["tokens"] for row in rows]))
    asked = {"samples": samples, **settings}
    if distributed.rank() != 0:
        return TaskReport(None, results, done.skipped, asked)
    score = {"figures": figures, "skipped": skipped, BLACKENED: sum(BLACKENED in row for row in rows)}
    score["true_images"] = true.count if true is not None else 0
    shown = [
        Shown([row["file"], str(prompts[i].item.image)], value, f"CLIP {value:.1f}", [row["prompt"]])
        for i, row, value in zip(done.results, results, each, strict=False)
    ]
    return TaskReport(score, results, done.skipped, asked, item_scores=each, shown=shown)
