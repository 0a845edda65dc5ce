"""The two values that travel between operations: a ragged batch and a selection of patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lavit.kernels.checks import INT32_MAX, verify_read_offsets


@dataclass(frozen=True)
class Ragged:
    """A batch of sequences of different lengths, stored without padding.

    values: (T, ...) the rows of all sequences, one sequence after the other.
    cu_seqlens: (B + 1,) int32 on the device of ``values``; sequence b is
        ``values[cu_seqlens[b]:cu_seqlens[b + 1]]``. ``cu_seqlens[-1] <= T``: rows beyond it are unused
        (they exist when T was an upper bound, so that the host did not have to wait for the true total).
    max_seqlen: an upper bound of the lengths, known to the host.
    """

    values: Tensor
    cu_seqlens: Tensor
    max_seqlen: int

    @property
    def batch_size(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    def lengths(self) -> Tensor:
        """(B,) int32 lengths, on the device."""
        return self.cu_seqlens.diff()

    def to(self, *args, **kwargs) -> Ragged:
        """Move or cast the values; the offsets follow the device and keep their dtype."""
        values = self.values.to(*args, **kwargs)
        return Ragged(values, self.cu_seqlens.to(values.device), self.max_seqlen)

    def with_values(self, values: Tensor) -> Ragged:
        """The same layout over other rows, e.g. after a row-wise layer."""
        return Ragged(values, self.cu_seqlens, self.max_seqlen)

    def unbind(self) -> list[Tensor]:
        """One tensor per sequence. Reads the offsets on the host: for output and tests, not for the hot path.

        Raises ValueError for offsets that do not begin at 0, that fall or end beyond the values.
        """
        bounds = self.cu_seqlens.tolist()
        verify_read_offsets("cu_seqlens", np.asarray(bounds), total=self.values.shape[0])
        return [self.values[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]

    @classmethod
    def from_list(cls, tensors: list[Tensor]) -> Ragged:
        """Concatenate sequences of one row shape, 2**31 - 1 rows in all at most; ValueError for others.

        An empty list is refused because it has no row shape.
        """
        if not tensors:
            raise ValueError("tensors: expected at least one sequence, got an empty list")
        for b, t in enumerate(tensors):
            if t.dim() == 0 or t.shape[1:] != tensors[0].shape[1:]:
                wanted = ", ".join(map(str, ("n", *tensors[0].shape[1:])))
                raise ValueError(f"tensors: expected shapes ({wanted}), got {tuple(t.shape)} for sequence {b}")
        lengths = [t.shape[0] for t in tensors]
        if sum(lengths) > INT32_MAX:
            raise ValueError(f"tensors: expected at most {INT32_MAX} rows in all, got {sum(lengths)}")
        cu = torch.zeros(len(lengths) + 1, dtype=torch.int64)
        cu[1:] = torch.tensor(lengths, dtype=torch.int64).cumsum(0)
        values = torch.cat(tensors)
        return cls(values, cu.to(device=values.device, dtype=torch.int32), max(lengths))


def compute_dtype(x: Tensor) -> torch.dtype:
    """What an operation computes ``x`` in: float32, or float64 where x has it."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class Selection(NamedTuple):
    """Which patches of each image stay (LaVIT section 3.1), with the stable partition that packing needs.

    keep: (B, N) 1 where the patch is kept, 0 where it is dropped; carries the straight-through gradient of ``prob``.
    prob: (B, N) relaxed probability of keeping (class 0 of the Gumbel-softmax at temperature tau).
    order: (B, N) int32, patch indices of each image: kept ones in raster order, then dropped ones in raster order.
    cu_kept, cu_dropped: (B + 1,) int32 offsets of each image's kept / dropped patches in a packed batch.
    """

    keep: Tensor
    prob: Tensor
    order: Tensor
    cu_kept: Tensor
    cu_dropped: Tensor
