"""What all tests share: tests that need a GPU are skipped, visibly, where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# Triton chooses between compiler and interpreter when it is imported, which nothing has done yet.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The first example of an operation also compiles or loads something, so a time limit per example says nothing.
hypothesis.settings.register_profile("lavit", deadline=None, max_examples=60)
hypothesis.settings.load_profile("lavit")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("LAVIT_LONG", "0") in ("", "0"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes many minutes: LAVIT_LONG=1"))
    if torch.cuda.is_available():
        return
    items = [item for item in items if item.path.name != "stand_in_operation.py"]  # needs none, only says so
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def threads_as_found() -> Iterator[None]:
    """Sums depend on their number, so a test that leaves another behind changes what those after it compute."""
    before = torch.get_num_threads()
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == before, f"the test began with {before} of torch's threads and left {after}"
