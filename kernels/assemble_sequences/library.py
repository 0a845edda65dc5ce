"""Registration of ``lavit::assemble_sequences``. Integers throughout: no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.assemble_sequences.types import Loss, Segment
from lavit.kernels.checks import INT64_MAX, on_host, verify_offsets, verify_range
from lavit.kernels.dispatch import Implementation, register
from lavit.kernels.extension import cpp_unusable

OPERATION = register(
    "assemble_sequences",
    Implementation("cpp", "one compiled pass writes every result", cpp_unusable),
    Implementation("reference", "plain PyTorch: running sums and searches"),
)


def most_rows(text: Tensor, images: Tensor, segments: Tensor) -> int:
    """What the host knows of the number of rows: every token at most once, and a pair for every segment."""
    return text.shape[0] + images.shape[0] + 2 * segments.shape[0]


@torch.library.custom_op(
    "lavit::assemble_sequences",
    mutates_args=(),
    schema="(Tensor text, Tensor cu_text, Tensor images, Tensor cu_images, Tensor segments, Tensor cu_segments,"
    " Tensor? loss, SymInt kind_loss, SymInt begin_id, SymInt end_id, SymInt first_code_id, SymInt pad_id,"
    " SymInt ignore_index, SymInt? num_codes, SymInt? total, str impl) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def assemble_sequences_op(text, cu_text, images, cu_images, segments, cu_segments, loss, *others):
    *constants, num_codes, total, impl = others
    tensors = (text, cu_text, images, cu_images, segments, cu_segments, loss)
    _verify(*tensors, constants[3], num_codes, total)
    rows = most_rows(text, images, segments) if total is None else total
    run = OPERATION.module(impl, text).assemble_sequences
    ids, labels, positions, cu_seqlens, feature_rows = run(*tensors, *constants, rows)
    if total is None:  # the bound is known without a first launch for the lengths; the result tells what is used of it
        rows = int(cu_seqlens[-1])
    return ids[:rows], labels[:rows], positions[:rows], cu_seqlens, feature_rows


@assemble_sequences_op.register_fake
def _(text, cu_text, images, cu_images, segments, cu_segments, *others):
    total = others[-2]
    rows = torch.library.get_ctx().new_dynamic_size() if total is None else total
    packed = [text.new_empty((rows,), dtype=torch.int64) for _ in range(3)]
    return *packed, cu_segments.new_empty(cu_segments.shape), images.new_empty(images.shape, dtype=torch.int64)


def _verify(text, cu_text, images, cu_images, segments, cu_segments, loss, first_code_id, num_codes, total) -> None:
    end_text = verify_offsets("text.cu_seqlens", cu_text, total=text.shape[0])
    end_images = verify_offsets("images.cu_seqlens", cu_images, total=images.shape[0])
    count = verify_offsets("segments.cu_seqlens", cu_segments, total=segments.shape[0])
    if count is None:  # nothing is to be looked at
        return
    kinds = segments[:count]
    verify_range("segments.values", kinds, 0, max(Segment))
    verify_range("text.values", text[:end_text], 0)
    most = INT64_MAX - first_code_id  # their ids are int64
    if num_codes is None:
        verify_range("images.values", images[:end_images], 0)
    verify_range("images.values", images[:end_images], 0, most if num_codes is None else min(num_codes - 1, most))
    if loss is not None:
        verify_range("loss", loss[:count], 0, int(Loss.ALL))
    texts = int((on_host(kinds) == Segment.TEXT).sum())
    wanted, rows = {"text": (texts, cu_text), "images": (count - texts, cu_images)}, 0
    for name, (pieces, cu) in wanted.items():
        if pieces > cu.shape[0] - 1:
            raise ValueError(f"{name}: expected {pieces}, one for each segment of its kind, got {cu.shape[0] - 1}")
        rows += int(on_host(cu)[pieces])
    rows += 2 * (count - texts)
    if total is not None and rows > total:
        raise ValueError(f"total: expected an upper bound of {rows} rows, got {total}")
