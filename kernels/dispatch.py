"""Which implementation of an operation runs, and why.

Every operation lists its implementations with a test of whether each can run on a device. The choice is, in this order:
the ``impl=`` argument, the environment variable ``LAVIT_KERNELS``, the first usable one of the operation's preference
for the device. It is made inside the registered op, at run time, so that compiled graphs never see it.

``LAVIT_KERNELS`` is one name for all operations (``reference``: those that lack it keep the automatic choice) or a
comma-separated list (``nearest_code=reference,pack=cpp``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, wraps
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("lavit.kernels")

AUTO = "auto"

_forked = False


def _in_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _leave_parents_threads() -> None:
    """In a child of os.fork OpenMP knows the threads that the parent had started, which are not there: a loop that
    wants them, a kernel's or torch's own, waits for ever. So the first operation in a child sets torch to one thread;
    where the parent had started none, the child may set more afterwards.
    """
    global _forked
    _forked = False
    torch.set_num_threads(1)


def always(device_type: str) -> str | None:
    """Usable everywhere."""
    return None


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    unusable: maps a device type ("cpu", "cuda") to the reason why it cannot run there, or None if it can. It is asked
        once for every GPU, with that one as torch's current device: a machine may have several kinds.
    why: what speaks for it, in a few words, for `lavit info`.
    """

    name: str
    why: str
    unusable: Callable[[str], str | None] = always


@dataclass(frozen=True)
class Choice:
    operation: str
    device_type: str
    name: str
    reason: str


@dataclass
class Operation:
    """The implementations of one operation in order of preference per device type; `reference` is always last."""

    name: str
    implementations: dict[str, Implementation] = field(default_factory=dict)
    preference: dict[str, tuple[str, ...]] = field(default_factory=dict)
    folder: str = ""  # under lavit.kernels; by default the operation's name

    def preferred(self, device_type: str) -> tuple[str, ...]:
        return self.preference.get(device_type, tuple(self.implementations))

    def choose(self, impl: str, device: torch.device | str) -> str:
        if _forked:
            _leave_parents_threads()
        return _choose(self.name, impl, *_place(device), os.environ.get("LAVIT_KERNELS", "")).name

    def module(self, impl: str, x: Tensor) -> Any:
        """The module of the implementation chosen for the device of ``x``, or, where it has a ``can_take`` that refuses
        x, of the first other one preferred there. Imported when it is needed: triton is slow to import, or absent."""
        if _forked:
            _leave_parents_threads()
        device = x.device  # of a tensor: it has its index
        name = _choose(self.name, impl, device.type, device.index, os.environ.get("LAVIT_KERNELS", "")).name
        module = _module(self.folder or self.name, name)
        can_take = getattr(module, "can_take", None)
        if can_take is None or can_take(x):
            return module
        return self._another(name, x)

    def _another(self, refused: str, x: Tensor) -> Any:
        """The first module preferred for the device of ``x`` that can run there and takes x."""
        for name in self.preferred(x.device.type):
            if name != refused and self.implementations[name].unusable(x.device.type) is None:
                module = _module(self.folder or self.name, name)
                if not hasattr(module, "can_take") or module.can_take(x):
                    return module
        raise RuntimeError(f"{self.name}: no implementation takes {x.dtype} of shape {tuple(x.shape)} on {x.device}")


def _place(device: torch.device | str) -> tuple[str, int | None]:
    """Type and index; without an index, and with a GPU, the current one's."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return "cuda", torch.cuda.current_device()
    return device.type, device.index


@cache
def _module(folder: str, name: str) -> Any:
    return import_module(f"lavit.kernels.{folder}.{name}")


OPERATIONS: dict[str, Operation] = {}


def register(
    name: str, *implementations: Implementation, preference: dict[str, tuple[str, ...]] | None = None, folder: str = ""
) -> Operation:
    """Declare an operation. Without ``preference`` the implementations are preferred in the order given, everywhere."""
    by_name = {i.name: i for i in implementations}
    if "reference" not in by_name:
        raise ValueError(f"{name}: every operation needs a reference implementation")
    operation = Operation(name, by_name, preference or {}, folder)
    OPERATIONS[name] = operation
    _choose.cache_clear()
    return operation


def requested_by_environment(operation: str, variable: str) -> str | None:
    """The implementation that ``LAVIT_KERNELS`` asks of an operation, None if it asks nothing of it."""
    for item in filter(None, (part.strip() for part in variable.split(","))):
        name, _, value = item.partition("=")
        if not value and name in OPERATIONS[operation].implementations:
            return name
        if value and name.strip() == operation:
            return value.strip()
    return None


@cache
def _choose(operation: str, impl: str, device_type: str, index: int | None, variable: str) -> Choice:
    with torch.cuda.device(index) if device_type == "cuda" and index is not None else nullcontext():
        choice = _decide(OPERATIONS[operation], impl, device_type, variable)
    log.info("%s on %s: %s (%s)", operation, device_type, choice.name, choice.reason)
    return choice


def _decide(op: Operation, impl: str, device_type: str, variable: str) -> Choice:
    operation = op.name
    asked, by = (impl, "impl=") if impl != AUTO else (requested_by_environment(operation, variable), "LAVIT_KERNELS")
    if asked is not None:
        if asked not in op.implementations:
            known = ", ".join(op.implementations)
            raise ValueError(f"{by}: {operation} has the implementations {known}; got {asked!r}")
        reason = op.implementations[asked].unusable(device_type)
        if reason is not None:
            raise RuntimeError(f"{by}: {operation} cannot run {asked!r} on {device_type}: {reason}")
        return Choice(operation, device_type, asked, f"asked for by {by}")
    return _automatic(op, device_type)


def _automatic(op: Operation, device_type: str) -> Choice:
    passed_over: list[str] = []
    for name in op.preferred(device_type):
        reason = op.implementations[name].unusable(device_type)
        if reason is None:
            why = op.implementations[name].why
            return Choice(op.name, device_type, name, "; ".join([why, *passed_over]))
        passed_over.append(f"not {name}: {reason}")
    raise RuntimeError(f"{op.name}: no implementation for {device_type} ({'; '.join(passed_over)})")


def table(device: torch.device | str) -> list[Choice]:
    """The choice of every operation on a device, for `lavit info` and the reports."""
    variable = os.environ.get("LAVIT_KERNELS", "")
    return [_choose(name, AUTO, *_place(device), variable) for name in sorted(OPERATIONS)]


def direct(*tensors: Tensor | None, gradient: bool = False) -> bool:
    """Whether an operation may be called past its registration, whose 20 to 100 us are for those who look at operators:
    the compiler, dispatch modes, functional transforms, tensors of other classes or without memory.

    tensors: all arguments. gradient: whether what is called has one; without, none of them may want it.
    """
    for x in tensors:
        if x is None:
            continue
        if type(x) not in (Tensor, torch.nn.Parameter) or x.is_meta:
            return False
        if not gradient and x.requires_grad and torch.is_grad_enabled():
            return False
    return not (torch.compiler.is_compiling() or _watched())


def _watched() -> bool:
    return bool(torch._C._len_torch_dispatch_stack()) or torch._C._functorch.peek_interpreter_stack() is not None


def without_autocast(body: Callable[..., Any]) -> Callable[..., Any]:
    """For the body of an operation: its products are computed in the precision that it chose, whatever the caller's
    autocast would make of them. The device is that of the first argument."""

    @wraps(body)
    def run(*args: Any) -> Any:
        device_type = args[0].device.type
        if not torch.is_autocast_enabled(device_type):
            return body(*args)
        with torch.autocast(device_type, enabled=False):
            return body(*args)

    return run


def debugging() -> bool:
    """True under ``LAVIT_DEBUG=1``: argument checks that read device memory on the host run too."""
    return os.environ.get("LAVIT_DEBUG", "0") not in ("", "0")
