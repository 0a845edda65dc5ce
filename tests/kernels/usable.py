"""For tests of several implementations: those that cannot run here are skipped, and what waits for the GPU is found.

A module with a name of its own, since ``conftest`` is whichever of them pytest has loaded last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import pytest
import torch

from lavit.kernels.dispatch import OPERATIONS


def skip_unless_usable(operation: str, impl: str, device: torch.device) -> None:
    """Skip with the reason where an implementation cannot run on a device, or says so by its absence."""
    reason = OPERATIONS[operation].implementations[impl].unusable(device.type)
    if reason is not None:
        pytest.skip(f"{operation}, {impl}: {reason}")


@contextmanager
def unchecked() -> Iterator[None]:
    """What tensors hold is not looked at within the block, as on a GPU without LAVIT_DEBUG=1."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lavit.kernels.checks.readable", lambda x: False)
        yield


@contextmanager
def gpu_waits(mode: str) -> Iterator[None]:
    """What the host's waiting for the GPU is within the block: an "error" or what torch should "warn" of."""
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def chosen_form(operation: str, form: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The implementation that ``form`` names on the CPU: "reference", or "cpp 32" for one by vectors of 32 bytes. Skips
    where it is not there, or the machine has no such vectors."""
    name, _, width = form.partition(" ")
    skip_unless_usable(operation, name, torch.device("cpu"))
    if width:
        monkeypatch.setattr(import_module(f"lavit.kernels.{operation}.cpp"), "VECTOR_BYTES", int(width))
        skip_without_vectors(int(width))
    return name


def skip_without_vectors(width: int) -> None:
    """Of ``width`` bytes; any other failure of the operator that is asked is one."""
    try:
        torch.ops.lavit_cpp.swiglu(torch.zeros(1), torch.zeros(1), width)
    except RuntimeError as error:
        if "this machine has no vectors" not in str(error):
            raise
        pytest.skip(str(error).splitlines()[0])
