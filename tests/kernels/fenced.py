"""Kernels in Triton's interpreter with every argument in memory of its own, between margins that nothing may touch.

``fenced(module, monkeypatch)`` fences every kernel that a launcher's module launches: each tensor is copied to a buffer
full of NaN, margins and the gaps between its elements included; every load and store of the kernel is compared, address
by address, with the elements that there are; after the launch all else must be as it was. Programs run in any order: no
element may be stored twice, or loaded after it was stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

MARGIN = 4096  # bytes on each side; a multiple of any alignment


class Buffer:
    """A tensor's copy with margins. ``view`` is the copy, of the same strides."""

    def __init__(self, x: Tensor) -> None:
        self.size = x.element_size()
        span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
        first = MARGIN // self.size
        self.bytes = torch.full((span * self.size + 2 * MARGIN,), 255, dtype=torch.uint8)
        self.inside = torch.zeros(span + 2 * first, dtype=torch.bool)
        self.inside.as_strided(x.shape, x.stride(), first).fill_(True)
        self.view = self.bytes.view(x.dtype).as_strided(x.shape, x.stride(), first)
        self.view.copy_(x)
        self.elements, self.stored = self.inside.numpy(), np.zeros(self.inside.shape, dtype=bool)
        self.start = self.bytes.data_ptr()
        self.end = self.start + self.bytes.numel()
        assert self.view.data_ptr() % 16 == 0

    def check(self, kernel: str, argument: str) -> None:
        outside = ~self.inside.repeat_interleave(self.size)
        assert bool((self.bytes[outside] == 255).all()), f"{kernel}: memory around {argument} was written to"


class Memory:
    """What takes the place of the interpreter's own loads and stores while a kernel runs."""

    def __init__(self, real: Any, kernel: str, buffers: dict[str, Buffer], once: bool) -> None:
        self._real, self._kernel, self._buffers, self._once = real, kernel, buffers, once

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def load(self, pointers: Any, mask: Any, *others: Any) -> Any:
        self._check("load", pointers, mask)
        return self._real.load(pointers, mask, *others)

    def store(self, pointers: Any, values: Any, mask: Any) -> Any:
        self._check("store", pointers, mask)
        return self._real.store(pointers, values, mask)

    def _check(self, what: str, pointers: Any, mask: Any) -> None:
        at = np.broadcast_to(pointers, np.shape(mask))[np.asarray(mask, dtype=bool)].astype(np.int64).ravel()
        if at.size == 0:
            return
        for name, buffer in self._buffers.items():
            if buffer.start <= at[0] < buffer.end:
                place = at - buffer.start
                near = (place >= 0) & (place < buffer.end - buffer.start) & (place % buffer.size == 0)
                place //= buffer.size
                assert near.all() and buffer.elements[place].all(), f"{self._kernel}: {what} outside of {name}"
                again = self._once and buffer.stored[place].any()
                assert not again, f"{self._kernel}: {what} in {name} of what is stored already"
                if what == "store":
                    buffer.stored[place] = True
                    assert len(np.unique(place)) == len(place), f"{self._kernel}: two values for a place in {name}"
                return
        raise AssertionError(f"{self._kernel}: {what} in no argument's memory")


class Fence:
    """Launches a kernel as it would be, in the interpreter, on fenced copies of its arguments."""

    def __init__(
        self, kernel: Any, monkeypatch: pytest.MonkeyPatch, launched: list[dict[str, Any]], once: bool
    ) -> None:
        self.kernel, self.monkeypatch, self.launched, self.once = kernel, monkeypatch, launched, once

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            from triton.runtime import interpreter

            names = self.kernel.arg_names
            tensors = {name: x for name, x in zip(names, args, strict=True) if isinstance(x, Tensor)}
            buffers = {name: Buffer(x) for name, x in tensors.items()}
            given = [buffers[name].view if name in buffers else x for name, x in zip(names, args, strict=True)]
            kernel = self.kernel.fn.__name__
            with self.monkeypatch.context() as patch:
                memory = Memory(interpreter._interpreter, kernel, buffers, self.once)
                patch.setattr(interpreter, "_interpreter", memory)
                self.kernel[grid](*given, **options)
            for name, x in tensors.items():
                buffers[name].check(kernel, name)
                x.copy_(buffers[name].view)
            self.launched.append(dict(zip(names, args, strict=True)))

        return launch


def fenced(module: Any, monkeypatch: pytest.MonkeyPatch, once: bool = True) -> list[dict[str, Any]]:
    """Fence all kernels of a launcher's module. Returns the list of launches, arguments by name, to come.

    once: no element may be stored twice, or loaded after it was stored.
    """
    launched: list[dict[str, Any]] = []
    for name, kernel in list(_kernels(module)):
        monkeypatch.setattr(module, name, Fence(kernel, monkeypatch, launched, once))
    return launched


def _kernels(module: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if name.endswith("_kernel") and hasattr(value, "arg_names"):
            yield name, value
