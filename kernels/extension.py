"""The compiled library ``lavit/_C.abi3.so``: found and loaded on first need, explained when it is not there.

It registers the operators ``torch.ops.lavit_cpp.*``: for the CPU always, for CUDA when it was built with nvcc.
``import lavit`` never fails for want of it, since every operation has its reference.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

LIBRARY = "_C.abi3.so"


@dataclass(frozen=True)
class Extension:
    """What was found. devices: the device types that have kernels; problem: why the library is not usable, or None."""

    path: str | None
    devices: tuple[str, ...]
    problem: str | None


def library_path() -> Path | None:
    """Where the library lies: in the installed package, which an editable install leaves in the source tree."""
    spec = importlib.util.find_spec("lavit")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / LIBRARY
        if path.is_file():
            return path
    return None


@cache
def extension() -> Extension:
    """Load the library once and say what it offers."""
    path = library_path()
    if path is None:
        return Extension(None, (), "lavit._C is not built (`pip install -e .` builds it where a C++ compiler is)")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return Extension(str(path), (), f"{LIBRARY} does not load with torch {torch.__version__}: {error}")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return Extension(str(path), tuple(d for d in ("cpu", "cuda") if has("lavit_cpp::pack", d.upper())), None)


def cpp_unusable(device_type: str) -> str | None:
    """Why the compiled kernels cannot run on a device type, or None if they can."""
    found = extension()
    if found.problem is not None:
        return found.problem
    if device_type in found.devices:
        return None
    return f"lavit._C was built without {device_type} kernels" + (" (no nvcc)" if device_type == "cuda" else "")


def kernel_unusable(name: str, device_type: str) -> str | None:
    """Why the compiled kernel ``name``, which there is for the CPU only, cannot run, or None if it can."""
    if device_type != "cpu":
        return "compiled for the CPU only"
    if (reason := cpp_unusable(device_type)) is not None:
        return reason
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"lavit_cpp::{name}", "CPU"):
        return "lavit._C is of an earlier version, install again (`pip install -e .`)"
    return None
