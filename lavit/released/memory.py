"""Weights in memory of their own: copied out of the files that they lie in, one after the other.

Libraries map a weights file into memory in place of reading it. A model made of such tensors changes when its file is
written over, and every page that has been read counts as memory used, beside the copy that a cast makes. Here each
tensor is copied, and the pages of the file are given back before the next one is read.
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right
from contextlib import suppress
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

MAPS = Path("/proc/self/maps")


class MappedFiles:
    """Where this process has files mapped, as Linux tells it; elsewhere none are known, and no page is given back."""

    def __init__(self) -> None:
        self.begins: list[int] = []
        self.ends: list[int] = []
        with suppress(OSError):
            for line in MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
                places, permissions, _, _, inode, *_ = line.split()
                # Private and never executed: no page of a program, and nothing that others see.
                if inode != "0" and permissions.startswith("r") and permissions.endswith("-p"):
                    begin, end = (int(place, 16) for place in places.split("-"))
                    self.begins.append(begin)
                    self.ends.append(end)

    def give_back(self, tensor: Tensor) -> None:
        """Forget the pages that a tensor of a mapped file fills; who reads it again reads the file again."""
        begin = tensor.data_ptr() if tensor.device.type == "cpu" else 0
        place = bisect_right(self.begins, begin) - 1
        end = begin + tensor.nbytes
        if place < 0 or end > self.ends[place]:
            return
        # Whole pages alone: those at its ends are its neighbours' too.
        begin, end = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end:
            with suppress(AttributeError, OSError):
                ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def owned(
    tensor: Tensor,
    mapped: MappedFiles,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """A contiguous copy, floats in ``dtype``; the pages that the original filled are given back."""
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    copy = torch.empty(tensor.shape, dtype=wanted, device=device or tensor.device).copy_(tensor.detach())
    mapped.give_back(tensor)
    return copy


def own_weights(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Copy a model's parameters and buffers into memory of its own, in place, floats of its files in ``dtype``.

    What the files do not hold (a rotation's frequencies) keeps its precision. Those on another device than
    the CPU are its own already, and are cast at most.
    """
    mapped = MappedFiles()
    stored = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    for tensor in chain(model.parameters(), model.buffers()):
        wanted = dtype if id(tensor) in stored and tensor.is_floating_point() else tensor.dtype
        if tensor.device.type == "cpu" or (wanted != tensor.dtype and not tensor.is_meta):
            tensor.data = owned(tensor, mapped, wanted)
