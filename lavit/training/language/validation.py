"""Held-out numbers of stage 2."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavit.data.captioned_folder import ImageFiles
from lavit.data.mixture import PackedRow, Source
from lavit.data.split import sample
from lavit.kernels.bin_pack import bin_pack
from lavit.language import inference
from lavit.language.generation_inputs import NonFiniteScores
from lavit.language.model import LaVIT
from lavit.language.processing import LaVITProcessor
from lavit.shapes.edits import edits, edits_source
from lavit.shapes.sequences import shapes_sources
from lavit.shapes.world import ShapesWorld
from lavit.training.engine.loop import Run
from lavit.training.engine.validation import count_of_scenes, fingerprint_of
from lavit.training.language.data import FolderData, ImageStore, folder_data, sequencing
from lavit.training.language.recipe import LanguageTrainingConfig

CAPTIONED = 64
"""So many images at most are given a caption."""


class LanguageValidation:
    """loss, text_loss and image_loss as the mixture has them on average: what is summed over the held-out samples of a
    kind, each sample once and at most ``validation_images`` of them, is weighted by the kind's share. exact: share of
    images whose caption, written greedily, is word for word one of their own."""

    def __init__(
        self,
        config: LanguageTrainingConfig,
        processor: LaVITProcessor,
        store: ImageStore,
        sources: Mapping[str, Source],
        shares: Mapping[str, float],
        captioned: Sequence[tuple[Any, Sequence[str]]],
        fingerprint: str,
        bad: Sequence[tuple[str, str]] = (),
    ) -> None:
        """captioned: images, as the processor takes them, and their captions."""
        self.processor, self.store, self.fingerprint, self.bad = processor, store, fingerprint, list(bad)
        self.rows: list[tuple[float, list[PackedRow]]] = []  # (share for each sample of the kind, its rows)
        for kind, source in sources.items():
            if shares[kind] > 0 and len(source):
                rows, count = packed(source, config.token_budget, store, config.validation_images)
                if count:
                    self.rows.append((shares[kind] / count, rows))
        if not self.rows:
            raise ValueError("validation: there are no held-out samples of the kinds that the mixture has")
        encode = processor.tokenizer
        lengths = [
            len(encode(text, add_special_tokens=False)["input_ids"]) for _, texts in captioned for text in texts
        ]
        self.captioned = list(captioned) if shares["caption"] > 0 else []
        self.longest = max(lengths, default=0) + 2

    def __call__(self, run: Run) -> dict[str, float]:
        model: Any = run.model
        sums = torch.zeros(4, dtype=torch.float64)  # of losses and labels, of text and images
        for weight, rows in self.rows:
            parts = [self._sums(model, row) for row in rows]
            sums += weight * torch.stack(parts).sum(0).cpu()
        text, text_labels, image, image_labels = sums.tolist()
        found = {}
        if text_labels:
            found["text_loss"] = text / text_labels
        if image_labels:
            found["image_loss"] = image / image_labels
        if model.config.image_objective == "regress":
            loss = found.get("text_loss", 0.0) + model.config.regression_weight * found.get("image_loss", 0.0)
        else:
            loss = (text + image) / max(text_labels + image_labels, 1e-12)
        found = {"loss": loss, **found}
        return found | ({"exact": self._exact(model)} if self.captioned else {})

    def _sums(self, model: LaVIT, row: PackedRow) -> Tensor:
        features, tokens = self.store.take(row.images)
        out = model(row.text, row.segments, loss=row.loss, features=features, tokens=tokens)
        text, image = out.text_labels.double(), out.image_labels.double()
        return torch.stack((out.text_loss.double() * text, text, out.image_loss.double() * image, image))

    def _exact(self, model: Any) -> float:
        images = [image for image, _ in self.captioned]
        try:
            written = inference.caption(
                model, images, self.processor, num_beams=1, min_new=1, max_new=self.longest, cut=plain, on_error="skip"
            )
        except NonFiniteScores:  # of a run that goes wrong, which is not ours to end
            return 0.0
        own = (self.captioned[number][1] for number in written.indices)
        return sum(said in map(plain, texts) for said, texts in zip(written, own, strict=True)) / len(images)


def plain(text: str) -> str:
    """Without spaces at the ends and with one between words."""
    return " ".join(text.split())


def packed(source: Source, budget: int, store: ImageStore, most: int) -> tuple[list[PackedRow], int]:
    """Samples of a source, at most so many of them from all over it, in rows of at most the budget, and how many are in
    them: longer ones are not."""
    count = min(most, len(source))
    samples = [source[number * len(source) // count] for number in range(count)]
    lengths = [one.tokens(store.length) for one in samples]
    members = [bin.tolist() for bin in bin_pack(lengths, budget, too_long="skip").unbind()]
    rows = [
        PackedRow.of([samples[i] for i in own], sum(lengths[i] for i in own), [0] * len(own)) for own in members if own
    ]
    return rows, sum(len(own) for own in members)


def held_out_samples(
    config: LanguageTrainingConfig,
    folder: FolderData | None,
    model: LaVIT,
    processor: LaVITProcessor,
    shares: Mapping[str, float],
) -> LanguageValidation | None:
    """Of a folder what it holds out; of the shapes world scenes of its test part. None where nothing is held out."""
    tokenizer = model.visual_tokenizer
    if folder is None:
        if not (count := count_of_scenes(config)):
            return None
        world = ShapesWorld(config.seed, "test")
        scenes = world.scenes(count)
        changed = count if config.mixture.edit > 0 else 0
        pairs = edits(world, changed, scenes=scenes[:changed])
        shown = np.concatenate([scenes.images, pairs.after.images])
        store = ImageStore.of(tokenizer, processor.image_processor, shown)
        order = sequencing(config, processor)
        sources = {**shapes_sources(world, scenes, order), "edit": edits_source(pairs, count, order)}
        told: list[tuple[Any, Sequence[str]]]
        told = [(image, [text]) for image, text in zip(scenes.images[:CAPTIONED], scenes.captions, strict=False)]
        return LanguageValidation(config, processor, store, sources, shares, told, f"shapes {config.seed} {count}")
    held_out = folder.held_out
    if held_out is None:
        return None
    sources, store, bad = folder_data(config, held_out, tokenizer, processor)
    unread = {name for name, _ in bad}
    seen = {item.image: item.captions for item in held_out.captions if str(item.image) not in unread}
    told = [(path, seen[path]) for path in sample(seen, held_out.root, CAPTIONED)]
    files = ImageFiles(held_out.root, held_out.paths)
    entries = repr(sorted((len(source), kind) for kind, source in sources.items()))
    mark = hashlib.blake2b(f"{fingerprint_of(files.paths, files.root)} {entries}".encode(), digest_size=16).hexdigest()
    return LanguageValidation(config, processor, store, sources, shares, told, mark, bad)
