"""Seeds: nothing is rounded, cut or taken for a number that is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lavit.kernels.checks import as_seeds


@pytest.mark.parametrize(
    "seeds",
    [
        [3, -(2**63), 2**63 - 1],
        (3, -(2**63), 2**63 - 1),
        np.array([3, -(2**63), 2**63 - 1]),
        torch.tensor([3, -(2**63), 2**63 - 1]),
        [torch.tensor(3), np.int64(-(2**63)), 2**63 - 1],
    ],
    ids=["list", "tuple", "array", "tensor", "scalars"],
)
def test_integers_of_any_kind_become_int64(seeds: Any) -> None:
    found = as_seeds("seeds", seeds)
    assert found.dtype == torch.int64 and found.tolist() == [3, -(2**63), 2**63 - 1]


def test_narrower_integers_are_widened_and_none_are_none() -> None:
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        assert torch.equal(as_seeds("seeds", torch.tensor([[1, 2]], dtype=dtype)), torch.tensor([[1, 2]]))
    assert as_seeds("seeds", []).shape == (0,) and as_seeds("seeds", []).dtype == torch.int64
    assert as_seeds("seeds", range(3), torch.device("cpu")).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([1, 1.5], r"own: expected integers, got 1\.5 at place 1"),
        ([2.0], r"own: expected integers, got 2\.0 at place 0"),
        ([1, True], "own: expected integers, got True at place 1"),
        ([np.bool_(True)], "own: expected integers, got .*True.* at place 0"),
        ([torch.tensor(True)], r"own: expected integers, got tensor\(True\) at place 0"),
        (np.array([0.5]), "own: expected integers, got .*0.5.* at place 0"),
        ([[1]], r"own: expected integers, got \[1\] at place 0"),
        ("12", "own: expected integers, got '1' at place 0"),
        (7, "own: expected a sequence of integers, got 7"),
        (torch.tensor([1.0]), "own: expected int64, got torch.float32"),
        (torch.tensor([True]), "own: expected int64, got torch.bool"),
        (torch.tensor([1], dtype=torch.uint64), "own: expected int64, got torch.uint64"),
    ],
)
def test_what_is_no_integer_is_refused(seeds: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        as_seeds("own", seeds)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_an_integer_beyond_int64_is_named(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"own: expected integers from .*, got {seed} at place 1"):
        as_seeds("own", [0, seed])
