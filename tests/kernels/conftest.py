"""What the tests of the operations share: the devices, and memory that is poisoned before a kernel writes to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where an operation runs: Triton kernels on the CPU in Triton's interpreter, and natively on a GPU."""
    return torch.device(request.param)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """torch.empty hands out NaN and the largest integers, so that what a kernel forgets to write shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
