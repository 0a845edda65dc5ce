"""A batch as it comes from the data, made into packed rows: which ids, which labels, and where features go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lavit.kernels import Loss, Ragged, Segment, Sequences, assemble_sequences
from lavit.kernels.assemble_sequences.types import DEFAULT_LOSS
from lavit.kernels.dispatch import debugging
from lavit.language.continuous_features import Understanding, image_rows
from lavit.language.vocabulary import Vocabulary
from lavit.tokenizer import LaVITTokenizer

SegmentLoss = Tensor | Mapping[Segment, Loss] | None


class PackedBatch(NamedTuple):
    """Samples as one packed row, for the language model.

    sequences: ids, labels, positions and offsets. max_seqlen: an upper bound of the samples' lengths.
    features: (Tf, H) continuous tokens, and feature_rows: (Tf,) the packed rows that they replace; None without any.
    targets: (Tm, C) visual embeddings to be regressed, and target_rows: (Tm,) their packed rows; None without any.
    """

    sequences: Sequences
    max_seqlen: int
    features: Tensor | None = None
    feature_rows: Tensor | None = None
    targets: Tensor | None = None
    target_rows: Tensor | None = None


class Model(Protocol):
    """What a LaVIT has for the functions behind its methods, which know it by this alone."""

    config: Any
    generation_config: Any
    answer_generation_config: Any
    language_model: Any
    visual_tokenizer: LaVITTokenizer
    understanding: Understanding

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def assemble(self) -> Callable[..., PackedBatch]: ...

    def embed(self, batch: PackedBatch) -> Tensor: ...


def assemble(
    model: Model, text: Ragged, segments: Ragged, *, loss: SegmentLoss, total: int | None, **images: Any
) -> PackedBatch:
    """The body of ``LaVIT.assemble``, which describes the rest. images: arguments of ``image_rows``."""
    tokenizer, understanding, vocabulary = model.visual_tokenizer, model.understanding, model.vocabulary
    # Images that are written are features too, and their labels are the stage-1 merger's rows.
    regress = model.config.image_objective == "regress"
    device = understanding.vit_proj.weight.device
    cu_segments = segments.cu_seqlens.cpu().long()
    kinds = segments.values.cpu()[: int(cu_segments[-1])]
    flags = _flags(kinds, loss)
    if regress:
        kinds = torch.where(kinds == Segment.CODES, int(Segment.FEATURES), kinds)
    is_text = kinds == Segment.TEXT
    image_kinds, predicted = kinds[~is_text], (flags[~is_text] & int(Loss.CONTENT)) > 0
    _check_text(text, int(is_text.sum()), vocabulary)

    as_codes = (image_kinds == Segment.CODES) | predicted
    rows = image_rows(
        tokenizer, understanding, as_codes, image_kinds == Segment.FEATURES, wants_merged=regress, **images
    )

    lengths = torch.empty(kinds.shape[0], dtype=torch.int64)
    lengths[is_text] = text.cu_seqlens.diff().long().cpu()
    lengths[~is_text] = rows.lengths + 2
    wanted, most = _measure(lengths, cu_segments, model.config.text_config.max_position_embeddings)
    if total is not None and total < wanted:
        raise ValueError(f"total: expected at least {wanted} rows for these samples, got {total}")
    sequences = assemble_sequences(
        _sent(text, device),
        _sent(Ragged(rows.codes, F.pad(rows.lengths.cumsum(0), (1, 0)).int(), tokenizer.num_patches), device),
        _sent(Ragged(kinds, segments.cu_seqlens, segments.max_seqlen), device),
        loss=flags.to(device, non_blocking=True),
        begin_id=vocabulary.begin_id,
        end_id=vocabulary.end_id,
        first_code_id=vocabulary.first_code_id,
        num_codes=vocabulary.num_codes,
        total=wanted if total is None else total,
    )
    batch, of_token = PackedBatch(sequences, most), sequences.feature_rows
    if rows.features is not None:
        batch = batch._replace(features=rows.features, feature_rows=of_token[rows.feature_places])
    if regress and rows.merged is not None:
        batch = batch._replace(targets=rows.merged, target_rows=of_token[rows.merged_places])
    return batch


def _flags(kinds: Tensor, loss: SegmentLoss) -> Tensor:
    """(S,) int64 flags on the CPU."""
    if isinstance(loss, Tensor):
        if loss.shape != kinds.shape:
            raise ValueError(f"loss: expected shape ({kinds.shape[0]},), one a segment, got {tuple(loss.shape)}")
        return loss.cpu().long()
    by_kind = {**DEFAULT_LOSS, **(loss or {})}
    return torch.tensor([int(by_kind[kind]) for kind in Segment])[kinds.long()]


def _check_text(text: Ragged, count: int, vocabulary: Vocabulary) -> None:
    if text.batch_size != count:
        raise ValueError(f"text: expected {count} pieces, one for each segment of text, got {text.batch_size}")
    if not text.values.numel() or not (text.values.device.type == "cpu" or debugging()):
        return
    wrong = (text.values < 0) | (text.values >= vocabulary.size)
    if wrong.any():
        place = int(wrong.int().argmax())
        piece = int(torch.searchsorted(text.cu_seqlens.long(), place, right=True)) - 1
        found = int(text.values[place])
        raise ValueError(f"text: expected ids 0 to {vocabulary.size - 1}, got {found} in piece {piece}")


def _measure(lengths: Tensor, cu_segments: Tensor, longest: int) -> tuple[int, int]:
    """Rows of the whole batch and of its longest sample, from the segments' lengths; all on the CPU."""
    ends = F.pad(lengths.cumsum(0), (1, 0))
    of_sample = ends[cu_segments].diff()
    if not of_sample.numel():
        return 0, 0
    most = int(of_sample.max())
    if most > longest:
        sample = int(of_sample.argmax())
        raise ValueError(f"sample {sample}: expected at most {longest} tokens, the model's context, got {most}")
    return int(ends[-1]), most


def _sent(x: Ragged, device: torch.device) -> Ragged:
    """To the device, without waiting for it."""
    values, cu_seqlens = (t.to(device, non_blocking=True) for t in (x.values, x.cu_seqlens))
    return Ragged(values, cu_seqlens, x.max_seqlen)
