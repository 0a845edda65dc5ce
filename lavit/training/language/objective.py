"""What stage 2 minimises, and which part learns at which rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lavit.data.mixture import PackedRow
from lavit.kernels import Loss, Segment
from lavit.language.model import LaVIT
from lavit.language.vocabulary import Vocabulary
from lavit.training.engine import distributed
from lavit.training.language.data import ImageStore

# The key of a parameter group that says: rows from the first number on have the second one as a factor of their step,
# those before it the third.
ROW_RATES = "row_rates"


class Step(nn.Module):
    """One packed row of stage 2 as a module, so that DistributedDataParallel sees the whole of it."""

    def __init__(self, model: LaVIT, store: ImageStore) -> None:
        super().__init__()
        self.model = model
        self._store = [store]  # no part of the module

    def forward(self, row: PackedRow, shares: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """shares: factors of the means, where the row is one of several of a step (`label_counts`)."""
        features, tokens = self._store[0].take(row.images)
        out = self.model(row.text, row.segments, loss=row.loss, features=features, tokens=tokens, shares=shares)
        return {
            "loss": out.loss,
            "text_loss": out.text_loss if shares is None else out.text_loss * shares["text_labels"],
            "image_loss": out.image_loss if shares is None else out.image_loss * shares["image_labels"],
            "labels": out.num_labels,
            "tokens": out.loss.new_full((), row.tokens),  # where the others are, without a copy
        }


def label_counts(
    row: PackedRow, of_image: Callable[[int], int], vocabulary: Vocabulary, regress: bool
) -> dict[str, int]:
    """How many labels a row will have, known before the model sees it: ``labels`` in the softmax, ``text_labels`` and
    ``image_labels`` as in `LaVITOutput`. of_image: number of an image -> its tokens. regress: the model's objective."""
    text = markers = codes = 0
    pieces, images = iter(row.text.unbind()), iter(row.images.tolist())
    flags = iter(row.loss.tolist())
    for kinds in row.segments.unbind():
        position = 0  # nothing predicts the first id of a sample
        for kind in kinds.tolist():
            flag = next(flags)
            if kind == Segment.TEXT:
                ids = next(pieces)
                if flag & Loss.CONTENT:
                    counted = ids[1:] if position == 0 else ids
                    image_ids = 0 if regress else int((counted >= vocabulary.begin_id).sum())
                    text, codes = text + len(counted) - image_ids, codes + image_ids
                position += len(ids)
                continue
            count = of_image(next(images))
            markers += bool(flag & Loss.BEGIN and position) + bool(flag & Loss.END)
            codes += count if flag & Loss.CONTENT else 0
            position += count + 2
    if regress:  # markers are text, and what is written of an image is no id
        return {"labels": text + markers, "text_labels": text + markers, "image_labels": codes}
    return {"labels": text + markers + codes, "text_labels": text, "image_labels": markers + codes}


def weigh_rows(
    rows: list[PackedRow], step: int, *, counts_of: Callable[[PackedRow], Mapping[str, int]], device: torch.device
) -> list[tuple[PackedRow, dict[str, Any]]]:
    """The loop's look ahead: with each row the shares of its labels in those of the step. counts_of: `label_counts`."""
    counts = [counts_of(row) for row in rows]
    names = sorted(counts[0])
    numbers = torch.tensor([[entry[name] for name in names] for entry in counts], dtype=torch.float64)
    factors, _ = distributed.shares(numbers.to(device, non_blocking=True))
    return [
        (row, {"shares": dict(zip(names, own.unbind(), strict=True))}) for row, own in zip(rows, factors, strict=True)
    ]


def parameter_groups(
    model: LaVIT, *, weight_decay: float = 0.1, language: float = 1.0, new_rows: float = 1.0, visual: float = 1.0
) -> list[dict[str, Any]]:
    """What stage 2 trains, in groups for an optimizer; freezes the rest (the visual tokenizer).

    language, new_rows, visual: learning rates of the language model, of the vocabulary's rows from [IMG] on, and of the
    understanding merger and projector, as factors of the run's (``lr_scale``, which the training loop applies). 0 keeps
    a part as it is, but for new_rows and language, where 0 for both leaves the vocabulary out. The published rates are
    1e-5 for the language model and 1e-4 for the visual parts.
    weight_decay: of matrices; norms, biases and embeddings have none.

    New rows are rows of the one matrix that embeds all ids, which an optimizer can only have in one group. Its group
    has the higher of the two rates, and ``scale_rows(optimizer)`` must be called once, so that every step is scaled
    down for the other rows.
    """
    for name, rate in (("language", language), ("new_rows", new_rows), ("visual", visual)):
        if rate < 0:
            raise ValueError(f"{name}: expected a factor of at least 0, got {rate}")
    model.freeze()
    embedding = model.language_model.get_input_embeddings().weight
    head = model.language_model.get_output_embeddings().weight
    vocabulary = [embedding] if head is embedding else [embedding, head]
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name.startswith("visual_tokenizer.") or any(parameter is p for p in vocabulary):
            continue
        part = "language" if name.startswith("language_model.") else "visual"
        members.setdefault((part, parameter.dim() >= 2), []).append(parameter)
    rates = {"language": language, "visual": visual}
    groups: list[dict[str, Any]] = []
    for (part, matrix), parameters in members.items():
        for parameter in parameters:
            parameter.requires_grad_(rates[part] > 0)
        if rates[part] > 0:
            groups.append({"params": parameters, "lr_scale": rates[part], "weight_decay": weight_decay * matrix})
    highest = max(language, new_rows)
    for parameter in vocabulary:
        parameter.requires_grad_(highest > 0)
    if highest > 0:
        rows = (model.config.text_size, new_rows / highest, language / highest)
        groups.append({"params": vocabulary, "lr_scale": highest, "weight_decay": 0.0, ROW_RATES: rows})
    return groups


def scale_rows(optimizer: Optimizer) -> None:
    """Make every step of the optimizer apply the row rates of ``parameter_groups``. Call once.

    After a step the rows of the lower rate are put at ``before + factor * (after - before)``. That is the step with the
    lower rate exactly where a step is proportional to its rate, as those of SGD, AdamW and their like are; gradient
    scaling would do nothing under AdamW, which divides by the gradient's size. The moments are the optimizer's own,
    the parameters stay whole for transformers, DistributedDataParallel and checkpoints. Costs a copy of these rows
    during the step. Where an engine shards or flattens parameters, rows cannot be told apart: ValueError at the first
    step.
    """
    before: list[tuple[Tensor, Tensor, float]] = []

    def remember(optimizer: Optimizer, *_: Any) -> None:
        before.clear()
        for group in optimizer.param_groups:
            if ROW_RATES not in group:
                continue
            first, new, old = group[ROW_RATES]
            for parameter in group["params"]:
                if parameter.dim() != 2 or parameter.shape[0] < first or type(parameter) is not nn.Parameter:
                    got = f"{type(parameter).__name__} of shape {tuple(parameter.shape)}"
                    raise ValueError(f"{ROW_RATES}: expected a whole matrix of at least {first} rows, got {got}")
                for rows, factor in ((parameter.detach()[first:], new), (parameter.detach()[:first], old)):
                    if factor != 1 and parameter.grad is not None:
                        before.append((rows, rows.clone(), factor))

    def blend(optimizer: Optimizer, *_: Any) -> None:
        for rows, old, factor in before:
            rows.copy_(torch.lerp(old, rows, factor) if factor else old)
        before.clear()

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(blend)
