"""Argument checks shared by the operations: each names the argument, what was wanted and what came.

The host knows shapes, dtypes and devices: ``check_*``. What tensors hold is looked at by ``verify_*``: on the CPU
always, where there is nothing to wait for, elsewhere under ``LAVIT_DEBUG=1`` only. The registered ops call those in
their bodies, before an implementation runs: all implementations refuse alike, and no tensor without memory comes there.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lavit.kernels.dispatch import debugging
from lavit.kernels.extension import cpp_unusable

INT32_MAX = 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


def check_float(name: str, x: Tensor, form: str | None = None) -> None:
    """A floating tensor, of the shape ``form`` as in check_rank if it is given."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name}: expected a float64, float32, bfloat16 or float16 tensor, got {x.dtype}")
    if form is not None:
        check_rank(name, x, form)


def check_int64(name: str, x: Tensor) -> None:
    if x.dtype != torch.int64:
        raise TypeError(f"{name}: expected int64, got {x.dtype}")


def as_seeds(name: str, seeds: Tensor | Sequence[int], device: torch.device | None = None) -> Tensor:
    """Seeds as int64, nothing being rounded: an integer tensor of any shape, or integers (n,) of any sequence.

    device: where to; None: where a tensor is, and the CPU for others. The host waits only for what comes to it.
    Raises TypeError for what is no integer, truth values among them, and ValueError for one that int64 does not hold.
    """
    if not isinstance(seeds, Tensor):
        if not hasattr(seeds, "__iter__"):
            raise TypeError(f"{name}: expected a sequence of integers, got {seeds!r}")
        seeds = torch.tensor([_integer(name, seed, place) for place, seed in enumerate(seeds)], dtype=torch.int64)
    if seeds.dtype not in INTEGERS:
        raise TypeError(f"{name}: expected int64, got {seeds.dtype}")
    device = seeds.device if device is None else device
    # What goes to the host without waiting is not there yet when it is read.
    return seeds.to(device, torch.int64, non_blocking=device.type != "cpu")


def _integer(name: str, seed: object, place: int) -> int:
    is_truth = isinstance(seed, bool) or getattr(seed, "dtype", None) == torch.bool
    try:
        number = None if is_truth else operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name}: expected integers, got {seed!r} at place {place}")
    if not INT64_MIN <= number <= INT64_MAX:
        raise ValueError(f"{name}: expected integers from -2**63 to 2**63 - 1, got {number} at place {place}")
    return number


def as_fill(name: str, value: float, dtype: torch.dtype) -> float:
    """What rows of padding hold. Raises ValueError for what float64 would round or an integer dtype cannot hold."""
    number = float(value)
    if number != value and value == value:  # NaN is no other number
        raise ValueError(f"{name}: expected a number that float64 holds, got {value}")
    if not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool):
        info = torch.iinfo(dtype)
        if not info.min <= number <= info.max:
            raise ValueError(f"{name}: expected {info.min} to {info.max} for {dtype}, got {value}")
    return number


def check_rank(name: str, x: Tensor, form: str) -> None:
    """``form`` is the shape as documented, for instance "(n, D)"; its commas give the rank."""
    if x.dim() != form.count(",") + 1:
        raise ValueError(f"{name}: expected shape {form}, got {shape(x)}")


def check_shape(name: str, x: Tensor, wanted: tuple[int, ...], to_match: str) -> None:
    if shape(x) != tuple(wanted):
        raise ValueError(f"{name}: expected shape {tuple(wanted)} to match {to_match}, got {shape(x)}")


def check_same_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(f"{name}: expected device {other.device} to match {other_name}, got {x.device}")


def check_same_dtype(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.dtype != other.dtype:
        raise TypeError(f"{name}: expected {other.dtype} to match {other_name}, got {x.dtype}")


def check_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}; got {value!r}")


def check_offsets(name: str, cu: Tensor, device: torch.device, batch: int | None = None) -> None:
    """``cu`` is an offset vector (B + 1,) int32 on ``device``."""
    if cu.dtype != torch.int32:
        raise TypeError(f"{name}: expected int32 offsets, got {cu.dtype}")
    if cu.dim() != 1 or cu.shape[0] < 1:
        raise ValueError(f"{name}: expected offsets of shape (B + 1,), got {shape(cu)}")
    if batch is not None and cu.shape[0] != batch + 1:
        raise ValueError(f"{name}: expected shape ({batch + 1},) for a batch of {batch}, got {shape(cu)}")
    if cu.device != device:
        raise ValueError(f"{name}: expected device {device}, got {cu.device}")


def check_order(order: Tensor, device: torch.device) -> None:
    """``order`` is (B, N) int32 on ``device``."""
    if order.dtype != torch.int32:
        raise TypeError(f"order: expected int32 patch indices, got {order.dtype}")
    if order.dim() != 2:
        raise ValueError(f"order: expected shape (B, N), got {shape(order)}")
    if order.device != device:
        raise ValueError(f"order: expected device {device}, got {order.device}")


def check_total(total: int | None) -> None:
    if total is not None and total < 0:
        raise ValueError(f"total: expected an upper bound >= 0 or None, got {total}")


def readable(x: Tensor) -> bool:
    """Whether checks may look at what ``x`` holds: it is on the CPU, or LAVIT_DEBUG=1 lets them wait for a device.

    Never while a graph is traced, for what is called outside of registered ops.
    """
    has_memory = not (torch.compiler.is_compiling() or isinstance(x, FakeTensor))
    return has_memory and (x.device.type == "cpu" or debugging())


def on_host(x: Tensor) -> np.ndarray:
    """What ``x`` holds, for numpy, which looks at a short tensor sooner than torch does."""
    x = x.detach().cpu()
    return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()


@cache
def _compiled() -> Any:
    """The compiled forms of what is looked at most (csrc/cpu/contents.cpp), or None; they find that all is well."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return torch.ops.lavit_cpp if cpp_unusable("cpu") is None and has("lavit_cpp::packing_end", "CPU") else None


def _asks_compiled(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.is_contiguous() and _compiled() is not None


def verify_offsets(
    name: str, cu: Tensor, *, total: int | None = None, longest: int | None = None, bound: str = ""
) -> int | None:
    """Offsets start at 0, never fall, end within ``total`` rows, and no sequence has more than ``longest``.

    bound: the argument that ``longest`` is, if it is one. Returns the last offset, None where nothing is looked at.
    """
    if not readable(cu):
        return None
    if _asks_compiled(cu):
        limits = (INT32_MAX if limit is None else limit for limit in (longest, total))
        end = _compiled().offsets_end.default(cu, *limits)
        if end >= 0:
            return end
    return verify_read_offsets(name, on_host(cu), total=total, longest=longest, bound=bound)


def verify_read_offsets(
    name: str, cu: np.ndarray, *, total: int | None = None, longest: int | None = None, bound: str = ""
) -> int:
    """``verify_offsets`` for offsets that the host has read for its own use."""
    if cu[0] != 0:
        raise ValueError(f"{name}: expected offsets from 0, got {cu[0]} first")
    falls = cu[1:] < cu[:-1]  # compared, since a difference need not fit in int32
    if falls.any():
        i = int(falls.argmax())
        raise ValueError(
            f"{name}: expected non-decreasing offsets, they fall after entry {i}, got {cu[i]} and then {cu[i + 1]}"
        )
    if longest is not None and cu[-1] > longest:
        lengths = cu[1:] - cu[:-1]
        b = int(lengths.argmax())
        if lengths[b] > longest:
            why = f" ({bound} is too small)" if bound else ""
            raise ValueError(
                f"{name}: expected at most {longest} rows a sequence, got {lengths[b]} in sequence {b}{why}"
            )
    if total is not None and cu[-1] > total:
        raise ValueError(f"{name}: expected offsets within {total} rows, got {cu[-1]} last")
    return int(cu[-1])


def verify_same_offsets(name: str, cu: Tensor, other_name: str, other: Tensor) -> None:
    """``cu`` holds what ``other`` holds, both of one shape."""
    if cu is other or not readable(cu):
        return
    found, wanted = on_host(cu), on_host(other)
    differs = found != wanted
    if differs.any():
        i = int(differs.argmax())
        raise ValueError(f"{name}: expected the offsets of {other_name}, {wanted[i]} at entry {i}, got {found[i]}")


def verify_order(order: Tensor) -> None:
    """Every row of ``order`` (B, N) is a permutation of 0..N-1."""
    if not readable(order) or (_asks_compiled(order) and _compiled().order_fits.default(order)):
        return
    rows = on_host(order)
    n = rows.shape[1]
    wrong = np.sort(rows, axis=1) != np.arange(n, dtype=rows.dtype)
    if not wrong.any():
        return
    b = int(wrong.any(axis=1).argmax())
    before: set[int] = set()
    for place, index in enumerate(rows[b].tolist()):
        if index in before or not 0 <= index < n:
            again = "again " if index in before else ""
            raise ValueError(f"order: row {b} is not a permutation of 0..{n - 1}, got {index} {again}at place {place}")
        before.add(index)


def verify_packing(order: Tensor, cu: Tensor, total: int | None = None) -> int | None:
    """``verify_order`` and ``verify_offsets`` of rows that are packed by both, looked at in one call."""
    if readable(order) and _asks_compiled(order) and cu.is_contiguous():
        end = _compiled().packing_end.default(order, cu, INT32_MAX if total is None else total)
        if end >= 0:
            return end
    verify_order(order)
    return verify_offsets("cu", cu, longest=order.shape[1], total=total)


def verify_range(name: str, values: Tensor, least: int, most: int | None = None, *, but: int | None = None) -> None:
    """Integers (n,) are ``least`` to ``most`` (None: no bound), or ``but``."""
    if not readable(values):
        return
    limit = INT64_MAX if most is None else most
    if _asks_compiled(values) and limit >= least and _compiled().range_fits.default(values, least, limit):
        return
    numbers = on_host(values)
    wrong = numbers < least
    if most is not None:
        wrong |= numbers > most
    if but is not None:
        wrong &= numbers != but
    if wrong.any():
        i = int(wrong.argmax())
        wanted = (f">= {least}" if most is None else f"{least} to {most}") + ("" if but is None else f" or {but}")
        raise ValueError(f"{name}: expected {wanted}, got {numbers[i]} at index {i}")


def verify_not_negative(name: str, x: Tensor) -> None:
    """Floating numbers (n,) are at least 0. NaN passes, since it shows in the result."""
    if not readable(x):
        return
    numbers = on_host(x)
    wrong = numbers < 0
    if wrong.any():
        i = int(wrong.argmax())
        raise ValueError(f"{name}: expected numbers >= 0, got {numbers[i]} at index {i}")
