"""Held-out numbers of stage 1."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from lavit.data import DataStream
from lavit.data.image_folder import ImageFiles
from lavit.data.images import ImageError
from lavit.tokenizer import LaVITTokenizer
from lavit.tokenizer.losses import BatchShare
from lavit.training.engine.loop import Run
from lavit.training.engine.metrics import code_use
from lavit.training.engine.schedule import phase_at, phases
from lavit.training.engine.stage import cache_folder
from lavit.training.engine.validation import fingerprint_of
from lavit.training.tokenizer.data import TrainingImages
from lavit.training.tokenizer.objective import features_of
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig


class TokenizerValidation:
    """The losses of held-out images as those of one batch, whatever the batch size: parts and whole, without the warm
    start; the cosine, the share of patches kept, and the use of the codes once there are some. The selection draws no
    noise."""

    def __init__(self, config: TokenizerTrainingConfig, tokenizer: LaVITTokenizer, held_out: Any) -> None:
        """held_out: images as `TrainingImages` takes them."""
        self.config, self.tokenizer = config, tokenizer
        self.images = TrainingImages(config, tokenizer, held_out)
        self.features = None
        if isinstance(held_out, ImageFiles):
            self.fingerprint = fingerprint_of(held_out.paths, held_out.root)
            root = cache_folder(config.cache, config.output)
            self.features = None if root is None else self.images.features(root)
        else:
            self.fingerprint = f"shapes {config.seed} {len(held_out)}"

    def __call__(self, run: Run) -> dict[str, float]:
        tokenizer = self.tokenizer
        phase = phase_at(run.step - 1, phases(self.config.order, self.config.loop.steps, self.config.first_phase))
        counts = []  # (images, kept patches) of each batch
        seen = []
        for images, features in self._batches():
            seen.append(images)
            kept = tokenizer.select(features, deterministic=True).cu_kept[-1]
            counts.append(torch.stack((torch.full_like(kept, len(features)), kept)))
        numbers = torch.stack(counts).double()
        totals = numbers.sum(0)
        shares = (numbers / totals.clamp(min=1) * len(counts)).float()
        keep_rate = totals[1] / (totals[0] * tokenizer.num_patches)
        sums: dict[str, Tensor] = {}
        used = torch.zeros(tokenizer.config.num_codes, dtype=torch.float64, device=totals.device)
        with closing(self._batches()) as again:
            for before, share in zip(seen, shares, strict=True):
                images, features = next(again, ([], torch.empty(0)))
                if images != before:  # whose shares these are
                    raise ImageError("an image could be read once and not again")
                part = BatchShare(share[0], share[1], keep_rate.float())
                out = tokenizer(features=features, quantize=phase.quantize, deterministic=True, share=part)
                for name in ("loss", "reconstruction_loss", "ratio_loss", "commitment_loss"):
                    sums[name] = sums.get(name, 0) + out[name].double() / len(counts)
                if out.ids is not None:
                    used.index_add_(0, out.ids.clamp(min=0), (out.ids >= 0).double())
        found = {name: float(value) for name, value in sums.items()}
        found |= {"cosine": 1 - found["reconstruction_loss"], "keep_rate": float(keep_rate)}
        if phase.quantize:
            codes, perplexity = code_use(used)
            found |= {"codes_used": int(codes), "perplexity": float(perplexity)}
        return found

    def _batches(self) -> Generator[tuple[list[Any], Tensor], None, None]:
        """Which images, in their order, and the features of these on the tokenizer's device."""
        size, dataset = self.config.loop.batch_size, self.images.dataset
        names = dataset.paths if isinstance(dataset, ImageFiles) else range(len(dataset))
        if self.features is not None:
            for start, rows in enumerate(self.features.split(size)):
                yield [start], features_of(self.tokenizer, {"features": rows})
            return
        reading: dict[str, Any] = {"transform": self.images.processor, "shuffle": False, "epochs": 1}
        workers = self.config.workers if isinstance(dataset, ImageFiles) else 0
        with DataStream(dataset, size, workers=workers, **reading) as stream:
            for batch in stream:
                yield [names[index] for index in batch["index"].tolist()], features_of(self.tokenizer, batch)
            self.images.leave_out(stream)
