"""Registration of ``lavit::assemble_sequences``. Integers throughout: no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.assemble_sequences.types import Loss, Segment
from lavit.kernels.checks import debug_offsets
from lavit.kernels.dispatch import Implementation, debugging, register
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
    if debugging():
        _debug(*tensors, num_codes, total)
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


def _debug(text, cu_text, images, cu_images, segments, cu_segments, loss, num_codes, total) -> None:
    """Reads everything: waits for the device."""
    debug_offsets("text.cu_seqlens", cu_text, total=text.shape[0])
    debug_offsets("images.cu_seqlens", cu_images, total=images.shape[0])
    debug_offsets("segments.cu_seqlens", cu_segments, total=segments.shape[0])
    kinds = segments[: int(cu_segments[-1])]
    _debug_range("segments.values", kinds, 0, max(Segment))
    _debug_range("text.values", text[: int(cu_text[-1])], 0, None)
    _debug_range("images.values", images[: int(cu_images[-1])], 0, None if num_codes is None else num_codes - 1)
    if loss is not None:
        _debug_range("loss", loss[: kinds.shape[0]], 0, int(Loss.ALL))
    texts = int((kinds == Segment.TEXT).sum())
    wanted, rows = {"text": (texts, cu_text), "images": (kinds.shape[0] - texts, cu_images)}, 0
    for name, (count, cu) in wanted.items():
        if count > cu.shape[0] - 1:
            raise ValueError(f"{name}: expected {count}, one for each segment of its kind, got {cu.shape[0] - 1}")
        rows += int(cu[count])
    rows += 2 * (kinds.shape[0] - texts)
    if total is not None and rows > total:
        raise ValueError(f"total: expected an upper bound of {rows} rows, got {total}")


def _debug_range(name: str, values: Tensor, least: int, most: int | None) -> None:
    wrong = (values < least) if most is None else (values < least) | (values > most)
    if bool(wrong.any()):
        i = int(wrong.int().argmax())
        wanted = f"{least} to {most}" if most is not None else f">= {least}"
        raise ValueError(f"{name}: expected {wanted}, got {int(values[i])} at index {i}")
