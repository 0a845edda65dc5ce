"""The definition, in plain PyTorch: segments to their numbers of rows, rows to their segments."""

from __future__ import annotations

import torch
from torch import Tensor

from lavit.kernels.assemble_sequences.types import Loss, Segment


def take(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]`` as int64, 0 where the index is outside."""
    inside = (index >= 0) & (index < values.shape[0])
    padded = torch.cat([values.long(), values.new_zeros(1, dtype=torch.int64)])
    return padded[torch.where(inside, index, values.shape[0])]


def pieces(cu: Tensor, tokens: int, rank: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """First token and number of tokens of the pieces ``rank``; none where not real or where there is no such piece."""
    real = real & (rank < cu.shape[0] - 1)
    begin = take(cu, rank).clamp(0, tokens)
    length = (take(cu, rank + 1).clamp(max=tokens) - begin).clamp(min=0)
    return begin, torch.where(real, length, 0)


def assemble_sequences(
    text: Tensor,
    cu_text: Tensor,
    images: Tensor,
    cu_images: Tensor,
    segments: Tensor,
    cu_segments: Tensor,
    loss: Tensor | None,
    kind_loss: int,
    begin_id: int,
    end_id: int,
    first_code_id: int,
    pad_id: int,
    ignore_index: int,
    total: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    device, cu_segments = text.device, cu_segments.long()
    number = torch.arange(segments.shape[0], device=device)
    used = number < cu_segments[-1]
    is_text = used & (segments == Segment.TEXT)
    is_image = used & ((segments == Segment.CODES) | (segments == Segment.FEATURES))

    # Every segment's tokens, rows and sample.
    which_text, which_image = is_text.cumsum(0) - 1, is_image.cumsum(0) - 1
    text_begin, text_length = pieces(cu_text, text.shape[0], which_text, is_text)
    image_begin, image_length = pieces(cu_images, images.shape[0], which_image, is_image)
    end = (text_length + torch.where(is_image, image_length + 2, 0)).cumsum(0)
    start = torch.cat([end.new_zeros(1), end])
    sample = torch.searchsorted(cu_segments[1:].contiguous(), number, right=True)
    sample_start = take(start, torch.minimum(take(cu_segments, sample), number))
    if loss is None:
        loss = kind_loss >> (3 * segments.clamp(0, len(Segment) - 1))
    cu_seqlens = take(start, cu_segments).clamp(max=total)

    # Every row: its segment (none beyond the last sample), its rank there, and from these all the rest.
    row = torch.arange(total, device=device)
    s = torch.searchsorted(end, row, right=True)
    rank = row - take(start, s)
    in_text, in_image = take(is_text, s) > 0, take(is_image, s) > 0
    is_begin, is_end = in_image & (rank == 0), in_image & (rank == take(image_length, s) + 1)
    code = take(images, take(image_begin, s) + rank - 1) + first_code_id
    ids = torch.where(in_text, take(text, take(text_begin, s) + rank), code)
    ids = torch.where(is_begin, begin_id, torch.where(is_end, end_id, ids))
    ids = torch.where(in_text | in_image, ids, pad_id)
    position = torch.where(in_text | in_image, row - take(sample_start, s), 0)
    flag = torch.where(is_begin, int(Loss.BEGIN), torch.where(is_end, int(Loss.END), int(Loss.CONTENT)))
    carries = ((take(loss, s) & flag) != 0) & (position > 0)

    # Every image token: the segment of its image.
    token = torch.arange(images.shape[0], device=device)
    image = torch.searchsorted(cu_images[1:].contiguous(), token, right=True)
    of_image = torch.full((cu_images.shape[0],), -1, device=device)
    of_image[torch.where(is_image, which_image, -1).clamp(max=cu_images.shape[0] - 1)] = number
    of_image[-1] = -1  # the entry of segments that are no image, and of tokens in none
    s = of_image[image]
    feature_row = take(start, s) + 1 + token - take(image_begin, s)
    is_feature = (s >= 0) & (take(segments, s) == Segment.FEATURES) & (feature_row < total)
    return (
        ids,
        torch.where(carries, ids, ignore_index),
        position,
        cu_seqlens.int(),
        torch.where(is_feature, feature_row, -1),
    )
