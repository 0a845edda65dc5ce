"""The sweep marks the fastest right configuration, and says where it cannot run."""

from __future__ import annotations

import pytest
import torch

from benchmarks.sweep import main, mark_best, right


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_the_best_is_the_fastest_of_its_precision_and_size_that_has_a_time():
    entries = [
        {"precision": "exact", "n": 8, "config": "a", "seconds": 2.0},
        {"precision": "exact", "n": 8, "config": "b", "seconds": 1.0},
        {"precision": "exact", "n": 8, "config": "wrong ids"},
        {"precision": "exact", "n": 9, "config": "a", "seconds": 3.0},
    ]
    mark_best(entries)
    assert [entry["best"] for entry in entries] == [False, True, False, True]


def test_an_id_may_differ_only_where_float64_itself_ties():
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    x = torch.tensor([[0.1, 2.0], [3.0, 0.2]])
    assert right(torch.tensor([2, 0]), x, codebook) == (True, 0.5)
    assert right(torch.tensor([1, 1]), x, codebook)[0] is False
    assert right(torch.tensor([1, -1]), x, codebook)[0] is False
