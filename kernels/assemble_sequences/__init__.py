"""Text and images to the packed sequences that a language model is trained on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lavit.kernels.assemble_sequences.library import assemble_sequences_op, most_rows
from lavit.kernels.assemble_sequences.types import DEFAULT_LOSS, Loss, Segment, Sequences, segment_order
from lavit.kernels.checks import INT32_MAX, check_offsets, check_same_device, check_total, shape
from lavit.kernels.types import Ragged

__all__ = ["Loss", "Segment", "Sequences", "assemble_sequences", "segment_order"]


def assemble_sequences(
    text: Ragged,
    images: Ragged,
    segments: Ragged,
    *,
    loss: Tensor | Mapping[Segment, Loss] | None = None,
    begin_id: int = 32000,
    end_id: int = 32001,
    first_code_id: int = 32002,
    pad_id: int = 0,
    ignore_index: int = -100,
    num_codes: int | None = None,
    total: int | None = None,
    impl: str = "auto",
) -> Sequences:
    """Lay text and images out as packed sequences: ids, labels, positions, and where continuous features go.

    text: values (Tt,) token ids, one sequence for each piece of text. images: values (Ti,) codes from 0, one sequence
    for each image. segments: values (S,) members of ``Segment``, one sequence for each sample, in reading order
    (``segment_order`` makes it from lists). All int64 or int32, on one device. The k-th TEXT segment of the batch takes
    the k-th piece of text, the k-th CODES or FEATURES segment the k-th image; pieces left over are not used.

    A piece of text becomes its ids, an image ``begin_id, first_code_id + codes, end_id``: the released LaVIT's
    vocabulary by default. An image of no tokens still gives its pair. For FEATURES the codes are placeholders in
    ``input_ids`` and labels where their content carries loss (zeros do where they are not known and not predicted);
    the model puts the features themselves over them, whose rows are those of ``images.values``::

        rows = torch.cat([embeddings, embeddings.new_zeros(1, width)])  # -1 is the spare row: nothing is waited for
        rows = rows.index_put((out.feature_rows,), features)[:-1]

    loss: what carries loss, by kind (a mapping; kinds that it lacks keep the default) or for every segment (S,) int64
    or int32 of ``Loss`` flags, of which a text knows CONTENT only. Default: texts and all of CODES, nothing of
    FEATURES. Labels are ``ignore_index`` elsewhere, and at the first row of every sample, which in a packed row would
    be predicted from the sample before.
    num_codes: the size of the codebook, only to find codes beyond it.
    total: an upper bound T of the packed rows, then the host waits for nothing; rows beyond the last sample are
    ``pad_id``, ``ignore_index`` and position 0. None: T is exact, at the price of one synchronisation (len(text) +
    len(images) + 2 * S rows are allocated).

    Returns ``Sequences``. No gradient: all are integers.
    Raises TypeError and ValueError for dtypes, shapes and devices that do not fit, for more segments than pieces and
    for more than 2**31 - 1 rows. On the CPU, elsewhere under LAVIT_DEBUG=1, also ValueError for offsets that do not
    begin at 0, that fall or end beyond their values, a ``total`` too small, kinds that are none, more texts or images
    in use than there are, negative ids, codes or flags out of range. Without it such values touch nothing outside:
    what does not fit is cut, cu_seqlens and feature_rows included, a kind that is none has no rows, a piece that is
    missing is empty.
    """
    for name, ragged in (("text", text), ("images", images), ("segments", segments)):
        _check_numbers(f"{name}.values", ragged.values)
        check_same_device(f"{name}.values", ragged.values, "text.values", text.values)
        check_offsets(f"{name}.cu_seqlens", ragged.cu_seqlens, text.values.device)
    count = segments.values.shape[0]
    if count > text.batch_size + images.batch_size:
        raise ValueError(
            f"segments: expected at most one for each of {text.batch_size} texts and {images.batch_size} images, "
            f"got {count}"
        )
    by_kind = DEFAULT_LOSS
    if isinstance(loss, Mapping):
        by_kind, loss = {**DEFAULT_LOSS, **loss}, None
        for kind, flags in by_kind.items():
            if kind not in DEFAULT_LOSS or not 0 <= int(flags) <= Loss.ALL:
                raise ValueError(f"loss: expected flags of Loss by Segment, got {flags!r} for {kind!r}")
    elif loss is not None:
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss: expected a tensor, a mapping or None, got {type(loss).__name__}")
        _check_numbers("loss", loss)
        check_same_device("loss", loss, "text.values", text.values)
        if loss.shape[0] != count:
            raise ValueError(f"loss: expected shape ({count},), one for each segment, got {shape(loss)}")
    ids = {"begin_id": begin_id, "end_id": end_id, "first_code_id": first_code_id, "pad_id": pad_id}
    for name, value in ids.items():
        if value < 0:
            raise ValueError(f"{name}: expected an id >= 0, got {value}")
    check_total(total)
    rows = most_rows(text.values, images.values, segments.values) if total is None else total
    if rows > INT32_MAX:
        of = "text, images" if total is None else "total"
        raise ValueError(f"{of}: expected at most {INT32_MAX} rows in all, got up to {rows}")
    kind_loss = sum(int(flags) << 3 * int(kind) for kind, flags in by_kind.items())
    batches = (tensor for ragged in (text, images, segments) for tensor in (ragged.values, ragged.cu_seqlens))
    numbers = (kind_loss, *ids.values(), ignore_index, num_codes, total)
    return Sequences(*assemble_sequences_op(*batches, loss, *numbers, impl))


def _check_numbers(name: str, x: Tensor) -> None:
    if x.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected int64 or int32, got {x.dtype}")
    if x.dim() != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {shape(x)}")
