"""What a sequence is made of, which of it carries loss, and the packed result."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import NamedTuple

import torch
from torch import Tensor

from lavit.kernels.types import Ragged


class Segment(IntEnum):
    """TEXT: a piece of text. CODES: an image as discrete tokens. FEATURES: an image whose rows a model overwrites with
    continuous features."""

    TEXT = 0
    CODES = 1
    FEATURES = 2


class Loss(IntFlag):
    """What of a segment is predicted: its text or image tokens, its [IMG], its [/IMG]."""

    NONE = 0
    CONTENT = 1
    BEGIN = 2
    END = 4
    ALL = 7


# Everything that a language model writes, nothing of an image that it is only shown.
DEFAULT_LOSS = {Segment.TEXT: Loss.CONTENT, Segment.CODES: Loss.ALL, Segment.FEATURES: Loss.NONE}


class Sequences(NamedTuple):
    """Packed sequences of text and images, one sample after the other.

    input_ids, labels, position_ids: (T,) int64. The labels stand at the position of their own id (a transformers model
        shifts them); positions restart at 0 in every sample.
    cu_seqlens: (B + 1,) int32; sample b is rows cu_seqlens[b] to cu_seqlens[b + 1]. Rows from cu_seqlens[-1] to T are
        padding.
    feature_rows: (Ti,) int64, one for each row of ``images.values``: the packed row of that token if its image is
        used as continuous features, else -1.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    feature_rows: Tensor


def segment_order(
    samples: Sequence[Sequence[str | Segment]], device: torch.device | str | None = None
) -> Ragged:
    """The ``segments`` argument of ``assemble_sequences`` from lists: ``[["features", "text"], ["text", "codes"]]``.

    samples: for each sample its segments in reading order, as names or members of Segment. Returns a ragged batch of
    int32 values (S,). Raises ValueError for a name that is none.
    """
    kinds = [[_segment(entry, b).value for entry in sample] for b, sample in enumerate(samples)]
    lengths = torch.tensor([0, *map(len, kinds)], dtype=torch.int32)
    values = torch.tensor([kind for sample in kinds for kind in sample], dtype=torch.int32)
    cu = lengths.cumsum(0, dtype=torch.int32)
    return Ragged(values.to(device), cu.to(device), max(map(len, kinds), default=0))


def _segment(entry: str | Segment, sample: int) -> Segment:
    try:
        return Segment[entry.upper()] if isinstance(entry, str) else Segment(entry)
    except (KeyError, ValueError):
        names = ", ".join(f"'{member.name.lower()}'" for member in Segment)
        raise ValueError(f"samples: expected one of {names}; got {entry!r} in sample {sample}") from None
