"""The two builds of csrc/cuda for the CPU, and how the tests ask them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import emulator
import pytest
import torch
from emulator import Call, Refused
from torch import Tensor

OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


@pytest.fixture(params=emulator.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    emulator.skip_without_compiler(request.param)
    return request.param


@pytest.fixture
def ask(kind: str) -> Callable[[Sequence[Call]], list]:
    """Runs calls with the threads in every order; their results are the same, bit for bit, where races are errors."""
    program = emulator.build(kind)

    def run(calls: Sequence[Call]) -> list:
        if any(call.reads for call in calls) and OVERCOMMIT.is_file() and OVERCOMMIT.read_text().strip() == "2":
            pytest.skip("tensors larger than memory: the system reserves all memory that is mapped")
        orders = emulator.ORDERS if kind == "races" else emulator.ORDERS[-1:]
        first, *others = [emulator.run(program, calls, order, seed=7) for order in orders]
        for other in others:
            for call, a, b in zip(calls, first, other, strict=True):
                assert not call.races or alike(a, b), "the order of the threads shows in the results"
        return first

    return run


def alike(a: list | Refused, b: list | Refused) -> bool:
    if isinstance(a, Refused) or isinstance(b, Refused):
        return str(a) == str(b)
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True))
