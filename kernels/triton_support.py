"""What the Triton kernels share: where they can run, and what the audit needs to compile them without a GPU.

Importing this does not import triton, which decides at its own import between compiler and interpreter.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from torch import Tensor

log = logging.getLogger("lavit.kernels")

OLDEST = (8, 0)
SHARED_OF_H100 = 227 * 1024
SHARED_OF_A100 = 163 * 1024  # what the tables' tiles are made for; compute capability 8.6, 8.9 and 12 have 99 KiB
FUSE = {"enable_fp_fusion": True}  # for a launch: triton 3.10 no longer contracts to fused multiply-adds unasked
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float64: "*fp64"}

Row = TypeVar("Row")
Choice = TypeVar("Choice")
Result = TypeVar("Result")


def interpreted() -> bool:
    """Whether this process runs Triton kernels in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def triton_unusable(device_type: str) -> str | None:
    """Why Triton kernels cannot run on a device type, or None if they can: of several GPUs, on the current one."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device_type == "cpu":
        if not interpreted():
            return "Triton kernels need a GPU (TRITON_INTERPRET=1 interprets them, for tests)"
        return _interpreter_problem(version("triton"), version("numpy"))
    if device_type != "cuda":
        return f"no Triton kernels for {device_type}"
    return _capability_problem(torch.cuda.current_device()) if torch.cuda.is_available() else "no CUDA device"


@cache
def _interpreter_problem(of_triton: str, of_numpy: str) -> str | None:
    triton, numpy = (tuple(int(n) for n in re.findall(r"\d+", v)[:3]) for v in (of_triton, of_numpy))
    if triton < (3, 7, 1) and numpy >= (2, 4):
        return f"Triton {of_triton}'s interpreter fails with numpy {of_numpy}: take one below 2.4, or Triton 3.7.1"
    return None


@cache
def _capability_problem(index: int) -> str | None:
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST:
        needed, has = (".".join(map(str, c)) for c in (OLDEST, capability))
        return f"made for compute capability {needed} and newer, this GPU has {has}"
    return None


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device: make it that of ``x``."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run side by side; in the interpreter, where it does not matter, an H100's."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


@cache
def architecture_of(device: torch.device) -> int:
    """90 for compute capability 9.0; in the interpreter, where it does not matter, an H100's."""
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
    return 10 * major + minor


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block may have; in the interpreter, where it does not matter, an H100's."""
    if device.type != "cuda":
        return SHARED_OF_H100
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stubs lack what follows
    return properties.shared_memory_per_block_optin


_refused: dict[Hashable, int] = {}  # how many of a launch's choices a device had no room for


def launch_first_that_fits(
    launch: Callable[[Choice], Result], choices: Sequence[Choice], what: Hashable, device: torch.device
) -> Result:
    """``launch(choice)`` with the first of ``choices``, the fastest first, that the device has room for.

    Triton compares what a compilation needs of shared memory, registers and threads with what the device has, before it
    launches anything. ``what`` is all that the compilations depend on besides the choice: operation, dtypes, widths; a
    refusal is remembered for it and the device, and logged. Raises Triton's OutOfResources where nothing fits.
    """
    from triton.runtime.errors import OutOfResources

    key = (what, device)
    for place in range(_refused.get(key, 0), len(choices)):
        try:
            return launch(choices[place])
        except OutOfResources as problem:
            if place + 1 == len(choices):
                raise
            _refused[key] = place + 1
            log.info("%s on %s: no room for %s (%s)", what, device, choices[place], problem)
    raise ValueError("choices: expected at least one, got none")


def newest(table: dict[int, Row], architecture: int) -> Row:
    """What a table of tiles has for the newest architecture not above the one asked for, else for its oldest."""
    return table[max((a for a in table if a <= architecture), default=min(table))]


@dataclass(frozen=True)
class Tile:
    """Queries and keys of an attention kernel's step, and how it is compiled: warps, and steps that loads run ahead."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int]:
        """For a launch, or for a Variant of it."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def column_parts(dim: int) -> tuple[int, int]:
    """Two powers of two of at least 16, the second 0 or not above the first, that hold a width with the least padding:
    tensor cores want powers of two, and LaVIT's 88 columns are 64 + 32, not 128."""
    powers = [16, 32, 64, 128, 256]
    options = [(a, b) for a in powers for b in (0, *powers) if b <= a and a + b >= dim]
    return min(options, key=lambda option: (sum(option), option[1]))


@dataclass(frozen=True)
class Tiles:
    """Of an attention: forward, and of the backward the kernel that owns queries and the one that owns keys."""

    forward: Tile
    queries: Tile
    keys: Tile


def widths_of_every_class(least: int, most: int) -> list[int]:
    """Of every division into parts, over multiples of 8 from least to most: a width that fills them, and one that does
    not. Kernels of the other widths are the same but for a number."""
    by_parts: dict[tuple[int, int], list[int]] = {}
    for dim in range(least, most + 1, 8):
        by_parts.setdefault(column_parts(dim), []).append(dim)
    return sorted({dim for dims in by_parts.values() for dim in dims[-2:]})


def of_width(by_width: dict[int, Tiles], dim: int) -> Tiles:
    """What a table by padded width has for a head of ``dim`` columns."""
    return by_width[min(width for width in by_width if width >= sum(column_parts(dim)))]


@dataclass(frozen=True)
class Variant:
    """One compilation of a Triton kernel, for ``python -m benchmarks.audit``. Each triton.py lists its own: variants().

    kernel: the ``@triton.jit`` function.
    label: what distinguishes this compilation, for instance "float32 128x64".
    signature: argument name to Triton type ("*fp32", "i32", ...), for every argument that is no constexpr.
    constants: the constexpr arguments; None for a pointer that is absent.
    divisible: integer arguments that are multiples of 16 wherever this variant runs; pointers always are.
    maxnreg: most registers a thread; without it ptxas spills a few to fit one more block on a multiprocessor.
    tensor_cores: the compilation must contain tensor-core instructions.
    architectures: for which it is meant, as in sm_90.
    """

    kernel: Any
    label: str
    signature: dict[str, str]
    constants: dict[str, Any] = field(default_factory=dict)
    divisible: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 3
    maxnreg: int | None = None
    tensor_cores: bool = False
    architectures: tuple[int, ...] = (80, 90, 100)


def variant(kernel: Any, label: str, types: dict[str, str], constants: dict[str, Any], **others: Any) -> Variant:
    """A Variant from tables that may name more arguments than the kernel has. What they do not name is a pointer to
    float32 where it is called so (``_ptr``), else an int32."""
    constants = {name: constants[name] for name in kernel.arg_names if name in constants}
    free = [name for name in kernel.arg_names if name not in constants]
    signature = {name: types.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in free}
    return Variant(kernel, label, signature, constants, **others)
