"""A step of stage 2 on samples as training mixes them: packed rows beside the same samples padded to the longest.

``pytest benchmarks/language/bench_training.py``. Forward and backward of a LaVIT from features of images, tokens and
text ids to the gradients, 64 samples in two batches, in the order in which a shuffled data set has them. ``tokens`` are
real ones: no padding is counted. On a CPU the small preset; on a GPU two layers of LLaMA-2-7B's width with the released
vocabulary, in bfloat16. The visual side is the same for all forms, and so small that the language model is measured.

"padded" is what transformers offers: LlamaForCausalLM with sdpa, padding to the right with its mask, all logits at
once. "padded, sorted" has samples of like length in a batch, which a data loader can do at the cost of the order.
"sdpa packed" is LaVIT with transformers' own attention, whose mask comes from the positions; "lavit packed" is LaVIT.

Parity: the loss and four gradients, beside those of the padded form in the next precision up. The largest error may be
twice that of the padded form in the same precision, and one rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from benchmarks.timing import measure
from lavit.data.mixture import PackedRow, Sample
from lavit.kernels import Loss, Segment
from lavit.language import LaVIT, LaVITConfig, attention
from lavit.language.configuration import PRESETS
from lavit.language.continuous_features import image_rows
from lavit.language.vocabulary import Vocabulary
from lavit.tokenizer import LaVITTokenizerConfig, VisualTokens

BATCH, BATCHES = 32, 2
FORMS = ("padded", "padded, sorted", "sdpa packed", "lavit packed")

# Shares of the samples (caption, question, image asked for, text alone): the small recipe's, and with as much text.
MIXTURES = {"images and text": (1, 1, 2, 0), "with text alone": (1, 1, 2, 4)}
# Tokens, log-normal: (median, sigma, most). Image tokens are between the two bounds.
CAPTION, QUESTION, TEXT, IMAGE = (14, 0.5, 64), (10, 0.3, 32), (24, 0.6, 128), (20, 90)


@dataclass(frozen=True)
class Case:
    name: str
    device: str
    text_size: int
    codes: int
    language: tuple[tuple[str, Any], ...]
    dtype: torch.dtype


SEVEN_B = {**PRESETS["lavit-g"], "num_hidden_layers": 2}
CASES = (
    Case("small", "cpu", 300, 256, tuple(PRESETS["small"].items()), torch.float32),
    Case("7B, 2 layers", "cuda", 32000, 16384, tuple(SEVEN_B.items()), torch.bfloat16),
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def bench_training(benchmark, device, case, mixture, form):
    if case.device != device.type:
        pytest.skip(f"{case.name}: measured on {case.device}")
    data = Data.of(case, mixture)
    errors = errors_of(case, mixture, form)
    allowed = 2 * max(errors_of(case, mixture, "padded").values()) + torch.finfo(case.dtype).eps
    run = step_of(model_of(case), data, form, device)
    measure(
        benchmark,
        device,
        f"stage-2 step, {case.name}, {mixture}, {BATCH * BATCHES} samples",
        run,
        implementation=form,
        baseline=form == "padded",
        passed=max(errors.values()) <= allowed,
        parity={**errors, "allowed": allowed},
        tokens=data.tokens,
        fill_rate=data.tokens / rows_of(data, form),
    )


# Data.


class Data(NamedTuple):
    """Samples in their order, with the features and tokens of all images; and how many tokens and labels in all."""

    samples: list[Sample]
    features: Tensor
    ids: Tensor
    keep: Tensor
    tokens: int
    labels: int

    @staticmethod
    @cache
    def of(case: Case, mixture: str) -> Data:
        generator = torch.Generator().manual_seed(0)
        count = BATCH * BATCHES
        shares = torch.tensor(MIXTURES[mixture])
        kinds = torch.arange(len(shares)).repeat_interleave(shares * count // shares.sum())
        lengths = torch.randint(IMAGE[0], IMAGE[1] + 1, (count,), generator=generator)
        samples = []
        for image, kind in enumerate(kinds[torch.randperm(count, generator=generator)].tolist()):
            samples.append(sample_of(kind, image, case.text_size, generator))
        config = tokenizer_config(case)
        # Of every image the first patches are kept: where they are does not change what is computed.
        keep = torch.arange(config.num_patches) < lengths[:, None]
        features = torch.randn(count, config.num_patches, config.hidden_size, generator=generator)
        ids = torch.randint(case.codes, (int(lengths.sum()),), generator=generator)
        length = lengths.tolist().__getitem__
        tokens = sum(sample.tokens(length) for sample in samples)
        data = Data(samples, features, ids, keep, tokens, 0)
        places, pictures = arguments(data, samples)
        with torch.no_grad():
            labels = model_of(case).assemble(*places, **pictures).sequences.labels
        return data._replace(labels=int((labels != -100).sum()))

    def length(self, sample: Sample) -> int:
        return sample.tokens(lambda image: int(self.keep[image].sum()))


def sample_of(kind: int, image: int, text_size: int, generator: torch.Generator) -> Sample:
    def text(median: int, sigma: float, most: int) -> list[int]:
        length = median * float((sigma * torch.randn((), generator=generator)).exp())
        return torch.randint(text_size, (min(max(round(length), 1), most),), generator=generator).tolist()

    if kind == 0:
        return Sample((Segment.FEATURES, Segment.TEXT), (text(*CAPTION),), (image,))
    if kind == 1:
        answer = text(2, 0.5, 8)
        loss = (Loss.NONE, Loss.NONE, Loss.CONTENT)
        return Sample((Segment.FEATURES, Segment.TEXT, Segment.TEXT), (text(*QUESTION), answer), (image,), loss)
    if kind == 2:
        return Sample((Segment.TEXT, Segment.CODES), (text(*CAPTION),), (image,))
    return Sample((Segment.TEXT,), (text(*TEXT),))


def arguments(data: Data, samples: list[Sample]) -> tuple[tuple[Any, Any], dict[str, Any]]:
    """Of ``LaVIT.forward``, as the training's data has them: text and offsets on the CPU."""
    row = PackedRow.of(samples, sum(map(data.length, samples)), [0] * len(samples))
    keep = data.keep[row.images]
    ends = data.keep.sum(dim=1).cumsum(0)
    ids = [data.ids[ends[image] - data.keep[image].sum() : ends[image]] for image in row.images.tolist()]
    offsets = torch.nn.functional.pad(keep.sum(dim=1).cumsum(0), (1, 0)).int()
    tokens = VisualTokens(torch.cat([*ids, data.ids[:0]]), offsets, keep)
    return (row.text, row.segments), {"loss": row.loss, "features": data.features[row.images], "tokens": tokens}


def batches_of(data: Data, form: str) -> list[list[Sample]]:
    samples = sorted(data.samples, key=data.length) if form == "padded, sorted" else data.samples
    return [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]


def rows_of(data: Data, form: str) -> int:
    """Rows that the language model computes, padding included."""
    lengths = [[data.length(sample) for sample in batch] for batch in batches_of(data, form)]
    return sum(len(batch) * max(batch) if form.startswith("padded") else sum(batch) for batch in lengths)


# Models.


def tokenizer_config(case: Case) -> LaVITTokenizerConfig:
    sizes = {"image_size": 64, "hidden_size": 32, "encoder_depth": 1, "merger_depth": 1, "decoder_depth": 1}
    return LaVITTokenizerConfig.preset("small", **sizes, num_codes=case.codes, projection_dim=None)


@cache
def model_of(case: Case) -> LaVIT:
    torch.manual_seed(0)
    size = Vocabulary(case.text_size, case.codes).size
    text_config = LlamaConfig(**dict(case.language), vocab_size=size)
    with torch.device(case.device):
        model = LaVIT(LaVITConfig(text_config, tokenizer_config(case), case.text_size))
    return torch.nn.Module.to(model, case.dtype).train()


def step_of(model: LaVIT, data: Data, form: str, device: torch.device) -> Callable[[], list[Tensor]]:
    """Forward and backward of all batches: the mean loss of all labels, and gradients of the first and last layers."""
    language = model.language_model
    watched = {
        "head": language.get_output_embeddings().weight,
        "queries": language.model.layers[0].self_attn.q_proj.weight,
        "embedding": language.get_input_embeddings().weight,
        "projector": model.understanding.vit_proj.weight,
    }
    make = padded if form.startswith("padded") else packed
    losses = [make(model, data, batch, device) for batch in batches_of(data, form)]

    def run() -> list[Tensor]:
        name = attention.NAME if form == "lavit packed" else "sdpa"
        if language.config._attn_implementation != name:
            language.set_attn_implementation(name)
        total = torch.zeros((), device=device)
        for loss in losses:
            part = loss()
            part.backward()
            total = total + part.detach()
        gradients = [parameter.grad for parameter in watched.values()]
        assert all(g is not None for g in gradients)
        model.zero_grad(set_to_none=True)  # nothing is held from one run to the next
        return [total, *(g for g in gradients if g is not None)]

    return run


def packed(model: LaVIT, data: Data, samples: list[Sample], device: torch.device) -> Callable[[], Tensor]:
    (text, segments), pictures = arguments(data, samples)
    pictures["features"] = pictures["features"].to(device, model.dtype)

    def loss() -> Tensor:
        out = model(text, segments, **pictures)
        return out.loss * (out.num_labels / data.labels)

    return loss


def padded(model: LaVIT, data: Data, samples: list[Sample], device: torch.device) -> Callable[[], Tensor]:
    """Ids, labels and places of features are put into their rows beforehand, as a data loader would."""
    (text, segments), pictures = arguments(data, samples)
    pictures["features"] = pictures["features"].to(device, model.dtype)
    with torch.no_grad():
        batch = model.assemble(text, segments, **pictures)
    lengths = batch.sequences.cu_seqlens.diff().long()
    width = int(lengths.max())
    place = torch.arange(len(samples), device=device).repeat_interleave(lengths) * width + batch.sequences.position_ids
    mask = torch.zeros(len(samples) * width, dtype=torch.int64, device=device).index_fill(0, place, 1)
    ids = torch.zeros_like(mask).index_copy(0, place, batch.sequences.input_ids)
    labels = torch.full_like(mask, -100).index_copy(0, place, batch.sequences.labels)
    ids, labels, mask = (x.view(len(samples), width) for x in (ids, labels, mask))
    feature_place = place[batch.feature_rows] if batch.feature_rows is not None else place[:0]
    kinds = segments.values[segments.values != Segment.TEXT]
    del pictures["loss"]

    def loss() -> Tensor:
        shown = image_rows(
            model.visual_tokenizer,
            model.understanding,
            kinds == Segment.CODES,
            kinds == Segment.FEATURES,
            **pictures,
        )
        rows = model.get_input_embeddings()(ids)
        if shown.features is not None:
            rows = rows.flatten(0, 1).index_copy(0, feature_place, shown.features).view(rows.shape)
        out = model.language_model(
            inputs_embeds=rows,
            attention_mask=mask,
            labels=labels,
            num_items_in_batch=data.labels,
            use_cache=False,
        )
        return out.loss

    return loss


@cache
def exact(case: Case, mixture: str) -> list[Tensor]:
    model = copy.deepcopy(model_of(case))
    model.to(torch.float64 if case.dtype == torch.float32 else torch.float32)  # type: ignore[arg-type]
    return step_of(model, Data.of(case, mixture), "padded", torch.device(case.device))()


@cache
def errors_of(case: Case, mixture: str, form: str) -> dict[str, float]:
    found = step_of(model_of(case), Data.of(case, mixture), form, torch.device(case.device))()
    names = ("loss", "head", "queries", "embedding", "projector")
    return {
        name: float((a.to(b.dtype) - b).norm() / b.norm())
        for name, a, b in zip(names, found, exact(case, mixture), strict=True)
    }
