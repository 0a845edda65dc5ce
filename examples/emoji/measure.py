"""A trained model on the pictures of one split: what it keeps, says, answers, draws and changes.

Every figure stands beside what guessing scores. The features in which drawn pictures are looked up are those of the
model's own frozen encoder, as it gives them for the true ones.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from examples.emoji.draw import WORLD
from examples.emoji.judge import ranks, retrieval, score_captions, score_pictures
from examples.emoji.pictures import chance
from lavit.data.annotations import EditItem, VQAItem
from lavit.data.captioned_folder import CaptionedFolder, read_folder, usual_answer
from lavit.evaluation.picture_content import edge_density, jpeg_size, rank_correlation
from lavit.evaluation.token_statistics import tokenize_and_decode

SHEET_COLUMNS = 12


@dataclass(frozen=True)
class Part:
    """A split as it was drawn. true: what world.json says of each picture, in an order that the seed decides; the
    first ``judged`` of them are judged, all of them are the gallery."""

    name: str
    folder: CaptionedFolder
    true: list[dict[str, Any]]
    judged: int

    @property
    def paths(self) -> list[Path]:
        return [self.folder.root / "images" / entry["file"] for entry in self.true]


def read_part(world: Path, split: str, items: int, seed: int = 0) -> Part:
    """Raises ValueError for a split that the world has not."""
    told = json.loads((world / WORLD).read_text(encoding="utf-8"))
    true = [entry for entry in told["pictures"] if entry["split"] == split]
    if not true:
        raise ValueError(f"split: {world} has no pictures of {split!r}")
    true.sort(key=lambda entry: chance(seed, "judged", entry["file"]))
    return Part(split, read_folder(world / split), true, min(items, len(true)))


@dataclass
class Measured:
    """The figures of a split by name, and some of the pictures: (true, drawn again), (true, drawn for its caption),
    (before, after, changed)."""

    figures: dict[str, Any]
    again: list[tuple[Image.Image, ...]]
    drawn: list[tuple[Image.Image, ...]]
    changed: list[tuple[Image.Image, ...]]


class Examiner:
    """model, processor: of stage 2. pipeline: of stage 3. batch_size: pictures at a time."""

    def __init__(self, model: Any, processor: Any, pipeline: Any, *, seed: int = 0, batch_size: int = 32) -> None:
        self.model, self.processor, self.pipeline = model, processor, pipeline
        self.seed, self.batch_size = seed, batch_size
        self.tokenizer = model.visual_tokenizer

    def measure(self, part: Part) -> Measured:
        """All figures of a split."""
        gallery = self._features([_open(path) for path in part.paths])
        place = {path: number for number, path in enumerate(part.paths)}
        paths, true = part.paths[: part.judged], part.true[: part.judged]
        images = [self._sized(_open(path)) for path in paths]
        kept, again = self._kept(gallery[: part.judged], images)
        kept["chance_cosine"] = float(cosine_similarity(gallery[: part.judged], gallery.mean(0), dim=-1).mean())
        drawn, figures_drawn = self._drawn(true, gallery)
        pairs = _edits(part.folder.edits, part.judged, self.seed)
        changed, figures_changed = self._changed(pairs, gallery, place)
        figures = {
            "split": part.name,
            "pictures": part.judged,
            "gallery": len(gallery),
            "tokens": kept,
            "drawn again": score_pictures(again, true, np.stack([np.asarray(image) for image in images])).as_dict(),
            "captions": score_captions(self.model.caption(paths, self.processor, **self._batch), true).as_dict(),
            "answers": self._answers(_questions(part.folder, set(paths))),
            "drawn": figures_drawn,
            "changed": figures_changed,
        }
        shown = [(self._sized(_open(edit.image)), self._sized(_open(edit.result))) for edit in pairs]
        return Measured(
            figures,
            list(zip(images, again, strict=True)),
            list(zip(images, drawn, strict=True)),
            [(before, after, found) for (before, after), found in zip(shown, changed, strict=True)],
        )

    @property
    def _batch(self) -> dict[str, int]:
        return {"batch_size": self.batch_size}

    def _sized(self, image: Image.Image) -> Image.Image:
        side = self.tokenizer.config.image_size
        return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BICUBIC)

    @torch.no_grad()
    def _features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(n, N, C) of the frozen encoder."""
        parts = []
        for begin in range(0, len(images), self.batch_size):
            batch = [self.processor.image_processor(image) for image in images[begin : begin + self.batch_size]]
            parts.append(self.tokenizer.encode_features(torch.cat(batch).to(self.tokenizer.device)).float().cpu())
        return torch.cat(parts)

    def _kept(self, features: torch.Tensor, images: list[Image.Image]) -> tuple[dict[str, Any], list[Image.Image]]:
        """How many tokens, how well they give the features back, and the pictures drawn from them."""
        found = tokenize_and_decode(self.tokenizer, features.to(self.tokenizer.device), batch_size=self.batch_size)
        tokens = found.tokens.tolist()
        figures = {
            "length": self.tokenizer.config.length,
            "mean": float(found.tokens.mean()),
            "least": int(found.tokens.min()),
            "most": int(found.tokens.max()),
            "of": self.tokenizer.num_patches,
            "codes_used": found.codes_used,
            "cosine": float(found.cosines.mean()),
            "with_edges": _finite(rank_correlation(tokens, list(map(edge_density, images)))),
            "with_jpeg_size": _finite(rank_correlation(tokens, list(map(jpeg_size, images)))),
        }
        drawn: list[Image.Image] = []
        for begin in range(0, len(images), self.batch_size):
            batch = found.decoded[begin : begin + self.batch_size]
            drawn += self.pipeline(features=batch, seeds=self._seeds(len(batch), begin)).images
        return figures, drawn

    def _seeds(self, count: int, begin: int = 0) -> list[int]:
        return [int(chance(self.seed, "noise", str(begin + number)) * 2**31) for number in range(count)]

    def _draw(self, prompts: list[Any]) -> list[Image.Image]:
        images: list[Image.Image] = []
        for begin in range(0, len(prompts), self.batch_size):
            batch = prompts[begin : begin + self.batch_size]
            seeds = self._seeds(len(batch), begin)
            found = self.model.generate_tokens(batch, self.processor, seeds=seeds, **self._batch)
            images += self.pipeline(found.codes, seeds=seeds).images
        return images

    def _found(self, images: list[Image.Image], gallery: torch.Tensor, right: list[list[int]]) -> np.ndarray:
        """The ranks of the right pictures, by the features of all patches from the gallery's mean on."""
        mean = gallery.mean(0)
        own = self._features(images)
        return ranks((own - mean).flatten(1).numpy(), (gallery - mean).flatten(1).numpy(), right)

    def _drawn(self, true: list[dict[str, Any]], gallery: torch.Tensor) -> tuple[list[Image.Image], dict[str, Any]]:
        images = self._draw([entry["caption"] for entry in true])
        found = self._found(images, gallery, [[number] for number in range(len(true))])
        return images, {**retrieval(found, len(gallery)).as_dict(), **score_pictures(images, true).as_dict()}

    def _changed(
        self, pairs: list[EditItem], gallery: torch.Tensor, place: dict[Path, int]
    ) -> tuple[list[Image.Image], dict[str, Any]]:
        """Of each kind of edit and of all, how often the picture asked for is found; beside what is found where the
        picture shown is left as it is."""
        if not pairs:
            return [], {}
        right = [[place[edit.result]] for edit in pairs]
        images = self._draw([[edit.image, edit.text] for edit in pairs])
        found = self._found(images, gallery, right)
        left = self._found([_open(edit.image) for edit in pairs], gallery, right)
        kinds = np.array([_kind(edit.text) for edit in pairs])
        figures = {}
        for kind in ["all", *sorted(set(kinds))]:
            rows = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
            figures[kind] = {
                **retrieval(found[rows], len(gallery)).as_dict(),
                "unchanged_nearest": float((left[rows] == 1).mean()),
                "unchanged_ten": float((left[rows] <= 10).mean()),
            }
        return images, figures

    def _answers(self, asked: list[VQAItem]) -> dict[str, Any]:
        """Of each type of question and of all: how many, how many right, and the commonest answer of the type."""
        if not asked:
            return {}
        said = self.model.answer(
            [item.image for item in asked], [item.question for item in asked], self.processor, **self._batch
        )
        rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for item, text in zip(asked, said, strict=True):
            rows[item.question_type].append((text, usual_answer(item.answers)))
        figures = {}
        for kind, pairs in sorted(rows.items()):
            commonest = Counter(wanted for _, wanted in pairs).most_common(1)[0][1]
            right = sum(got == wanted for got, wanted in pairs)
            figures[kind] = {"questions": len(pairs), "right": right / len(pairs), "chance": commonest / len(pairs)}
        total = len(asked)
        return {
            "all": {
                "questions": total,
                **{
                    key: sum(row[key] * row["questions"] for row in figures.values()) / total
                    for key in ("right", "chance")
                },
            },
            **figures,
        }


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _questions(folder: CaptionedFolder, paths: set[Path]) -> list[VQAItem]:
    return [item for item in folder.questions if item.image in paths]


def _edits(edits: Sequence[EditItem], count: int, seed: int) -> list[EditItem]:
    """As many of each kind as there are, one of each in turn, until there are ``count``."""
    order = sorted(edits, key=lambda edit: chance(seed, "edited", edit.image.name, edit.text))
    kinds: dict[str, list[EditItem]] = defaultdict(list)
    for edit in order:
        kinds[_kind(edit.text)].append(edit)
    turns = (kinds[kind][turn] for turn in range(len(order)) for kind in sorted(kinds) if turn < len(kinds[kind]))
    return [edit for edit, _ in zip(turns, range(count), strict=False)]


def _kind(text: str) -> str:
    """Of an edit, from its words: edits.jsonl has more than lavit reads."""
    words = text.split()
    if words[:2] == ["change", "the"]:
        return {"skin": "tone"}.get(words[2], words[2])
    return {"make": "gender", "put": "object"}[words[0]]


def sheet(rows: Sequence[tuple[Image.Image, ...]]) -> Image.Image:
    """Groups of pictures, each one above the other, side by side."""
    rows = rows[: 4 * SHEET_COLUMNS]
    if not rows:
        raise ValueError("rows: expected at least one")
    side, high = rows[0][0].width, len(rows[0])
    lines = -(-len(rows) // SHEET_COLUMNS)
    drawn = Image.new("RGB", (SHEET_COLUMNS * (side + 4), lines * (high * side + 8)), "white")
    for number, group in enumerate(rows):
        line, column = divmod(number, SHEET_COLUMNS)
        for level, image in enumerate(group):
            drawn.paste(image, (column * (side + 4), line * (high * side + 8) + level * side))
    return drawn


def told(figures: dict[str, Any]) -> Iterator[str]:
    """The figures of a split in lines."""
    kept, again, captions = figures["tokens"], figures["drawn again"], figures["captions"]
    yield f"{figures['split']}: {figures['pictures']} of {figures['gallery']} pictures"
    yield (
        f"  tokens       {kept['mean']:.1f} of {kept['of']} ({kept['least']} to {kept['most']}), {kept['codes_used']} "
        f"codes; cosine {_beside(kept['cosine'], kept['chance_cosine'])}; rank correlation with edges "
        f"{_number(kept['with_edges'])}, with JPEG bytes {_number(kept['with_jpeg_size'])}"
    )
    yield (
        f"  drawn again  {again['psnr']:.1f} dB; background {_beside(again['background'], again['chance_background'])}"
        f", main colour {_beside(again['colour'], again['chance_colour'])}"
    )
    parts = [f"{part} {_beside(share, captions['chance'][part])}" for part, share in captions["parts"].items()]
    yield f"  captions     exact {captions['exact']:.3f}; {', '.join(parts)}"
    for kind, row in figures["answers"].items():
        yield f"  answers      {kind}: {_beside(row['right'], row['chance'])} of {row['questions']}"
    drawn = figures["drawn"]
    yield (
        f"  drawn        nearest {_beside(drawn['nearest'], drawn['chance_nearest'])}, among ten "
        f"{_beside(drawn['ten'], drawn['chance_ten'])}; background "
        f"{_beside(drawn['background'], drawn['chance_background'])}, main colour "
        f"{_beside(drawn['colour'], drawn['chance_colour'])}"
    )
    for kind, row in figures["changed"].items():
        yield (
            f"  changed      {kind}: nearest {_beside(row['nearest'], row['chance_nearest'])}, among ten "
            f"{_beside(row['ten'], row['chance_ten'])} of {row['pictures']}; left as it is "
            f"{row['unchanged_nearest']:.3f}, {row['unchanged_ten']:.3f}"
        )


def _finite(value: float) -> float | None:
    """None for NaN, which JSON has not."""
    return None if math.isnan(value) else value


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _beside(value: float | None, guessed: float | None) -> str:
    return f"{_number(value)} (chance {_number(guessed)})"
