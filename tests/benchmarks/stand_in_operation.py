"""Tests that end in every way a test on a GPU can end; `benchmarks/run_gpu.sh tests --dry` runs them as an operation.

Not collected by itself: its name says so.
"""

from __future__ import annotations

import os
import time

import pytest
import torch

pytestmark = pytest.mark.gpu


def test_passes():
    assert torch.ones(1).item() == 1


@pytest.mark.parametrize("rows", [3])
def test_fails_with_its_input(rows):
    expected = torch.zeros(rows)
    found = torch.tensor([1.0, float("nan"), 2.0])
    torch.testing.assert_close(found, expected)


def test_loses_the_context():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_passes_in_a_new_process():
    assert os.environ["LAVIT_RECORD"]


def test_crashes():
    os.abort()


def test_passes_after_a_crash():
    pass


def test_hangs():
    time.sleep(600)


def test_passes_after_a_hang():
    pass


def test_is_skipped():
    pytest.skip("needs two devices")
