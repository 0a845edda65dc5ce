"""Generated images judged: the best of several by any scorer, CLIP's score, FID, and what is seen in drawn scenes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.data.record import Record
from lavit.evaluation.frechet import Moments, Statistics, distance
from lavit.evaluation.inception import load_inception
from lavit.evaluation.metric_weights import WeightsError
from lavit.shapes.probe import CellProbe
from lavit.shapes.scores import SceneReport, score_scenes

Scorer = Callable[[Sequence[str], Sequence[Any]], Sequence[float] | np.ndarray | Tensor]
"""(prompts, images), n of each -> n numbers, the higher the better the image shows its prompt."""


@dataclass(frozen=True)
class Ranked(Record):
    """The scores of a prompt's samples, and which is best (the first one among equals)."""

    best: int
    scores: tuple[float, ...]


def rerank(
    prompts: Sequence[str], samples: Sequence[Sequence[Any]], scorer: Scorer, *, batch_size: int = 64
) -> list[Ranked]:
    """The best of each prompt's samples, by the scorer.

    samples: one list of images (whatever the scorer takes) for every prompt; the lists may differ in length.
    batch_size: at most so many pairs go to the scorer at once.
    Raises ValueError, naming the prompt, for one without samples or with a score that is NaN; also for another number
    of lists than prompts, and of scores than pairs.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a number >= 1, got {batch_size}")
    if len(samples) != len(prompts):
        raise ValueError(f"samples: expected a list for each of {len(prompts)} prompts, got {len(samples)}")
    for number, images in enumerate(samples):
        if len(images) == 0:
            raise ValueError(f"samples: expected at least one image for prompt {number}, {prompts[number]!r}, got none")
    pairs = [(prompt, image) for prompt, images in zip(prompts, samples, strict=True) for image in images]
    scores: list[float] = []
    for begin in range(0, len(pairs), batch_size):
        part = pairs[begin : begin + batch_size]
        given = scorer([prompt for prompt, _ in part], [image for _, image in part])
        got = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=np.float64).reshape(-1)
        if len(got) != len(part):
            raise ValueError(f"scorer: expected {len(part)} scores for as many images, got {len(got)}")
        scores += got.tolist()
    ranked, rest = [], iter(scores)
    for number, images in enumerate(samples):
        own = tuple(islice(rest, len(images)))
        if any(map(math.isnan, own)):
            raise ValueError(f"scorer: gave NaN for prompt {number}, {prompts[number]!r}")
        ranked.append(Ranked(own.index(max(own)), own))
    return ranked


class ClipScorer:
    """How well images show their prompts, by CLIP: 100 times the cosine of the two embeddings. A ``Scorer``.

    The release ranks by CLIP ViT-L/14. Prompts longer than CLIP's context are cut.
    folder: a CLIP model, its tokenizer and image processor, as transformers saves them; nothing is downloaded.
    Raises ValueError for a folder that is not there.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        import transformers
        from transformers import AutoTokenizer, CLIPModel

        if not Path(folder).is_dir():
            raise ValueError(f"folder: there is no folder {os.fspath(folder)} with a CLIP model")
        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=dtype)
        self.model = model.eval().requires_grad_(False).to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # Pillow's resizing, as CLIP was trained, and no torchvision. Older transformers call it CLIPImageProcessor.
        processor: Any = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
        self.image_processor = processor.from_pretrained(folder, local_files_only=True)

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Tensor:
        """n prompts and as many RGB images -> (n,) float32 on the CPU."""
        if len(prompts) != len(images):
            raise ValueError(f"images: expected one for each of {len(prompts)} prompts, got {len(images)}")
        if not prompts:
            return torch.empty(0)
        longest = self.model.config.text_config.max_position_embeddings
        text = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        pixels = self.image_processor(list(images), return_tensors="pt")["pixel_values"]
        device, dtype = self.model.device, self.model.dtype
        found = self.model(
            input_ids=text["input_ids"].to(device),
            attention_mask=text["attention_mask"].to(device),
            pixel_values=pixels.to(device, dtype),
        )
        return 100 * F.cosine_similarity(found.image_embeds.float(), found.text_embeds.float()).cpu()


    @torch.inference_mode()
    def similarities(self, first: Sequence[Image.Image], second: Sequence[Image.Image]) -> Tensor:
        """n RGB images and as many -> (n,) float32 on the CPU: 100 times the cosine of the images' embeddings."""
        if len(first) != len(second):
            raise ValueError(f"second: expected one for each of {len(first)} images, got {len(second)}")
        if not first:
            return torch.empty(0)
        pixels = self.image_processor([*first, *second], return_tensors="pt")["pixel_values"]
        found = self.model.get_image_features(pixel_values=pixels.to(self.model.device, self.model.dtype))
        found = getattr(found, "pooler_output", found)  # the embeddings alone, in older transformers
        one, two = found.float().chunk(2)
        return 100 * F.cosine_similarity(one, two).cpu()


@dataclass(frozen=True)
class Figure(Record):
    """A number, or the reason why there is none here."""

    value: float | None
    reason: str | None = None


def frechet_distance(
    real: Iterable[Tensor],
    generated: Iterable[Tensor],
    *,
    weights: str | os.PathLike[str] | None = None,
    features: nn.Module | None = None,
    device: str | torch.device = "cpu",
    across_processes: bool = False,
) -> Figure:
    """FID (Heusel et al., 2017) as the release measures it, or the reason why there is none.

    real, generated: batches (n, 3, H, W) uint8; at least two images each.
    weights: of Inception, see `lavit.evaluation.inception.load_inception`; they are not downloaded here.
    features: another network than Inception, with ``num_features`` D: (n, 3, H, W) uint8 -> (n, D).
    across_processes: each process gives its own part of the images, and all get the figure of the whole. Else every
        process counts alone.
    Raises ValueError for batches of another form and for fewer than two images.
    """
    if features is None:
        try:
            features = load_inception(weights, option="weights")
        except WeightsError as error:
            return Figure(None, str(error))
    network: Any = features.to(device)
    found: list[Statistics] = []
    for name, batches in (("real", real), ("generated", generated)):
        moments = Moments(network.num_features)
        for batch in batches:
            if batch.dtype != torch.uint8 or batch.dim() != 4 or batch.shape[1] != 3:
                raise ValueError(
                    f"{name}: expected batches (n, 3, H, W) of uint8, got {tuple(batch.shape)} of {batch.dtype}"
                )
            moments.add(network(batch.to(device)))
        try:
            found.append(moments.statistics(across_processes=across_processes))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return Figure(distance(*found))


def score_generated_scenes(probe: CellProbe, features: Tensor, asked: np.ndarray) -> SceneReport:
    """Whether the objects asked for are in generated scenes of the shapes world, as a probe reads them.

    features: (n, N, C) of the generated images, encoded or decoded from tokens, as those that the probe has learned
    from. asked: cells (n, 4) of the prompts' scenes; `lavit.shapes.questions.read_caption` gives them for a caption.
    What the probe itself mistakes counts as missing: see its own score on real images.
    """
    return score_scenes(probe.read(features).numpy(), asked)
