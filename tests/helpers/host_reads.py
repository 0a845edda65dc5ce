"""Counting what a GPU's host would wait for, on the CPU: every reading of a tensor's values by the host.

On a GPU ``torch.cuda.set_sync_debug_mode`` counts such waits; this stands in for it where there is none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch.profiler import ProfilerActivity, profile

# Operators that wait on a GPU, whoever calls them: item, bool, int, float, indexing by an element or a mask,
# masked_select and repeat_interleave are made of these.
WAITING = frozenset(
    f"aten::{name}"
    for name in ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "equal", "bincount")
)
# Methods that read without an operator. Triton's interpreter, which stands in for a kernel, reads what it computes on.
READING = ("tolist", "numpy", "cpu", "__array__")
# Whether checks look at what tensors hold, which they do on the CPU only; what they have read is not read again there.
LOOKS = "lavit.kernels.checks.readable"


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """The reads within the block, by name; the list is complete when the block is left. ``Tensor.to`` is not seen."""
    reads: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        method = getattr(Tensor, name)

        def read(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller.partition(".")[0] not in ("triton", "torch"):
                reads.append(name)
            return method(self, *args, **kwargs)

        return read

    with patch.multiple(Tensor, **{name: counted(name) for name in READING}), patch(LOOKS, lambda x: False):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            yield reads
    reads += [event.name for event in profiled.events() if event.name in WAITING]
