"""Triton's interpreter with every argument of a kernel in memory of its own, and every access looked at.

``install(monkeypatch)`` fences all launches until the test's end. Each tensor is copied to a buffer full of NaN,
margins and the gaps between its elements included; every load and store is compared, address by address, with the
elements there are, whether or not a loaded value is used; after the launch all else must be as it was. Programs run in
any order: where ``once`` asks for it, no element may be stored twice, or loaded after it was stored.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

MARGIN = 1 << 16  # bytes on each side, of any alignment: an access that strays further meets no argument either


class Buffer:
    """An argument's copy between margins. ``view`` is the copy, of the same strides."""

    def __init__(self, x: Tensor) -> None:
        self.size, first = x.element_size(), MARGIN // x.element_size()
        span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
        self.bytes = torch.full((span * self.size + 2 * MARGIN,), 0xFF, dtype=torch.uint8)
        self.inside = torch.zeros(span + 2 * first, dtype=torch.bool)
        self.inside.as_strided(x.shape, x.stride(), first).fill_(True)
        self.view = self.bytes.view(x.dtype).as_strided(x.shape, x.stride(), first)
        self.original, self.copy = _each_once(x), _each_once(self.view)
        self.copy.copy_(self.original)
        self.elements, self.stored = self.inside.numpy(), np.zeros(len(self.inside), dtype=bool)
        self.begin = self.bytes.data_ptr()
        self.end = self.begin + self.bytes.numel()
        assert self.view.data_ptr() % 16 == 0

    def give_back(self) -> None:
        """What was written, to the argument; everything beside its elements must be as it was."""
        outside = ~self.inside.repeat_interleave(self.size)
        assert bool((self.bytes[outside] == 0xFF).all()), "memory around an argument was written to"
        self.original.copy_(self.copy)


def _each_once(x: Tensor) -> Tensor:
    """An expanded tensor without its repetitions."""
    shape = [n if s else min(n, 1) for n, s in zip(x.shape, x.stride(), strict=True)]
    return x.as_strided(shape, x.stride(), x.storage_offset())


class Fence:
    """launched: the arguments of every launch, by name. accesses: how many elements were loaded or stored.
    backwards: the grid's last program runs first."""

    def __init__(self, once: bool) -> None:
        self.once, self.backwards, self.accesses = once, False, 0
        self.launched: list[dict[str, Any]] = []
        self.kernel, self.buffers, self.grid = "", dict[str, Buffer](), (1, 1, 1)

    def begin(self, kernel: Any, positional: list[Any], named: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        arguments = inspect.getcallargs(kernel, *positional, **named)
        self.kernel = kernel.__name__
        self.buffers = {name: Buffer(x) for name, x in arguments.items() if isinstance(x, Tensor)}
        self.launched.append(arguments)
        fenced = {name: self.buffers[name].view if name in self.buffers else x for name, x in arguments.items()}
        names = inspect.getfullargspec(kernel).args
        return [fenced[n] for n in names[: len(positional)]], {n: fenced[n] for n in named}

    def end(self) -> None:
        for name, buffer in self.buffers.items():
            try:
                buffer.give_back()
            except AssertionError as error:
                raise AssertionError(f"{self.kernel}, {name}: {error}") from None

    def check(self, what: str, pointers: Any, mask: Any) -> None:
        at = np.broadcast_to(pointers, np.shape(mask))[np.asarray(mask, dtype=bool)].astype(np.int64).ravel()
        self.accesses += at.size
        for name, buffer in self.buffers.items():
            here = at[(at >= buffer.begin) & (at < buffer.end)]
            at = at[(at < buffer.begin) | (at >= buffer.end)]
            place, rest = np.divmod(here - buffer.begin, buffer.size)
            assert not rest.any() and buffer.elements[place].all(), f"{self.kernel}: {what} outside of {name}"
            if not self.once:
                continue
            again = buffer.stored[place].any()
            assert not again, f"{self.kernel}: {what} in {name} of what is stored already"
            if what == "store":
                buffer.stored[place] = True
                assert len(np.unique(place)) == len(place), f"{self.kernel}: two values for a place in {name}"
        assert not at.size, f"{self.kernel}: {what} in no argument's memory"


class _Watched:
    """The interpreter's loads and stores, looked at first; all else is its own."""

    def __init__(self, own: Any, fence: Fence) -> None:
        self._own, self._fence = own, fence

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def load(self, pointers: Any, mask: Any, *others: Any) -> Any:
        self._fence.check("load", pointers, mask)
        return self._own.load(pointers, mask, *others)

    def store(self, pointers: Any, values: Any, mask: Any) -> Any:
        self._fence.check("store", pointers, mask)
        return self._own.store(pointers, values, mask)


def install(monkeypatch: pytest.MonkeyPatch, once: bool = True) -> Fence:
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    fence = Fence(once)
    executor, builder = interpreter.GridExecutor, interpreter.interpreter_builder
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx

    def grid(*dims: int) -> None:
        fence.grid = dims
        set_dim(*dims)

    def program(*at: int) -> None:
        set_idx(*(n - 1 - i for n, i in zip(fence.grid, at, strict=True)) if fence.backwards else at)

    monkeypatch.setattr(interpreter, "_interpreter", _Watched(interpreter._interpreter, fence))
    monkeypatch.setattr(executor, "_init_args_hst", lambda self, args, named: fence.begin(self.fn, args, named))
    monkeypatch.setattr(executor, "_restore_args_dev", lambda *_: fence.end())
    monkeypatch.setattr(builder, "set_grid_dim", grid, raising=False)
    monkeypatch.setattr(builder, "set_grid_idx", program, raising=False)
    return fence
