"""Triton's interpreter with every argument of a kernel in a memory range of its own, and every access looked at.

Used through the fixture ``guard``. A load or store outside the argument's own elements fails the kernel, whether or not
its value would have been used; margins of NaN and -1 around each argument must be whole after every launch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

MARGIN = 1 << 16  # bytes before and behind an argument: an access that strays further meets no argument either


class Guard:
    """What is allowed during a launch, and how many elements were looked at. ``backwards``: the grid's last program
    runs first."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, int]] = []
        self.buffers: list[tuple[Tensor, Tensor]] = []  # what stands for an argument, with margins; its elements
        self.accesses = 0
        self.backwards = False
        self.grid = (1, 1, 1)

    def check(self, what: str, addresses: Any, mask: Any, size: int) -> None:
        addresses, mask = np.broadcast_arrays(addresses, np.asarray(mask, dtype=bool))
        wanted = addresses[mask].astype(np.int64)
        inside = np.zeros(wanted.shape, dtype=bool)
        for begin, end in self.spans:
            inside |= (wanted >= begin) & (wanted + size <= end)
        self.accesses += wanted.size
        if not inside.all():
            edges = np.array(self.spans).flatten()
            far = min((int(d) for d in (wanted[~inside][:, None] - edges).flatten()), key=abs)
            raise IndexError(f"{what} outside of every argument, {far:+d} bytes from an edge of one")

    def stand_in(self, x: Tensor) -> Tensor:
        """A copy of the elements from the first to the last of x, between margins."""
        extent = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
        size = extent * x.element_size()
        buffer = torch.full((2 * MARGIN + size,), 0xFF, dtype=torch.uint8)
        elements = buffer[MARGIN : MARGIN + size].view(x.dtype)
        elements.copy_(x.as_strided((extent,), (1,)))
        self.spans.append((elements.data_ptr(), elements.data_ptr() + size))
        self.buffers.append((buffer, x.as_strided((extent,), (1,))))
        return elements.as_strided(x.shape, x.stride())

    def give_back(self) -> None:
        """What the kernel wrote, to the arguments; the margins must be as they were."""
        for buffer, original in self.buffers:
            for margin in (buffer[:MARGIN], buffer[len(buffer) - MARGIN :]):
                assert bool((margin == 0xFF).all()), "a margin was written to"
            original.copy_(buffer[MARGIN : len(buffer) - MARGIN].view(original.dtype))
        self.forget()

    def forget(self) -> None:
        self.spans, self.buffers = [], []


class _Watched:
    """The interpreter's loads and stores, looked at first; all else is its own."""

    def __init__(self, own: Any, guard: Guard) -> None:
        self.own, self.guard = own, guard

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def load(self, ptrs, mask, other, dtype):
        self.guard.check("a load", ptrs, mask, np.dtype(dtype).itemsize)
        return self.own.load(ptrs, mask, other, dtype)

    def store(self, ptrs, value, mask):
        self.guard.check("a store", ptrs, mask, value.itemsize)
        return self.own.store(ptrs, value, mask)


def install(monkeypatch: pytest.MonkeyPatch) -> Guard:
    """Guards every launch until the test's end."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    guard = Guard()
    executor, builder = interpreter.GridExecutor, interpreter.interpreter_builder
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx

    def arguments(self, args_dev, kwargs):
        guard.forget()  # of a launch that failed
        one = lambda a: guard.stand_in(a) if isinstance(a, Tensor) else a  # noqa: E731
        return [one(a) for a in args_dev], {name: one(a) for name, a in kwargs.items()}

    def grid(*dims):
        guard.grid = dims
        set_dim(*dims)

    def program(*at):
        set_idx(*(n - 1 - i for n, i in zip(guard.grid, at, strict=True)) if guard.backwards else at)

    monkeypatch.setattr(interpreter, "_interpreter", _Watched(interpreter._interpreter, guard))
    monkeypatch.setattr(executor, "_init_args_hst", arguments)
    monkeypatch.setattr(executor, "_restore_args_dev", lambda *_: guard.give_back())
    monkeypatch.setattr(builder, "set_grid_dim", grid, raising=False)
    monkeypatch.setattr(builder, "set_grid_idx", program, raising=False)
    return guard
