"""Argument checks shared by the operations: each names the argument, what was wanted and what came.

The host knows shapes, dtypes and devices: ``check_*``. Values are in device memory: ``debug_*`` wait for the device, so
the registered ops call them under ``LAVIT_DEBUG=1`` only.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

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


def debug_offsets(name: str, cu: Tensor, longest: int | None = None, total: int | None = None) -> None:
    """Reads the offsets: they start at 0, never fall, no sequence exceeds ``longest``, the end is within ``total``."""
    lengths = cu.diff()
    if int(cu[0]) != 0:
        raise ValueError(f"{name}: expected offsets from 0, got {int(cu[0])} first")
    if lengths.numel() and int(lengths.min()) < 0:
        raise ValueError(f"{name}: expected non-decreasing offsets, they fall after entry {int(lengths.argmin())}")
    if longest is not None and lengths.numel() and int(lengths.max()) > longest:
        b = int(lengths.argmax())
        raise ValueError(f"{name}: expected at most {longest} rows a sequence, got {int(lengths[b])} in sequence {b}")
    if total is not None and int(cu[-1]) > total:
        raise ValueError(f"{name}: expected offsets within {total} rows, got {int(cu[-1])}")


def debug_order(order: Tensor) -> None:
    """Reads the indices: every row of ``order`` is a permutation of 0..N-1."""
    wanted = torch.arange(order.shape[1], device=order.device, dtype=order.dtype)
    wrong = (order.sort(dim=1).values != wanted).any(dim=1)
    if bool(wrong.any()):
        raise ValueError(f"order: row {int(wrong.int().argmax())} is not a permutation of 0..{order.shape[1] - 1}")
