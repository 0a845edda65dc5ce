"""Two processes that work together, for a test."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LOADED = (
    "pytest",
    "lavit.evaluation.reconstruction",
    "lavit.training.language.train",
    "lavit.training.pixels.train",
    "lavit.training.tokenizer.train",
)
"""What their parent has imported, once for all tests."""


def on_two_processes(function: Callable[..., None], folder: str | os.PathLike[str], *args: Any) -> None:
    """``function(rank, folder, *args)`` by two members of a group, on one thread each; any failure is raised.

    They are no children of this process, which may have threads (of OpenMP, of autograd, of CUDA) that a fork would
    leave behind with whatever they hold. So a function is one of its module's own, arguments can be pickled, and what a
    test has patched or set in the environment is not there.
    """
    multiprocessing.set_forkserver_preload(list(LOADED))
    words = function, os.fspath(folder), *args
    mp.start_processes(_member, args=words, nprocs=2, start_method="forkserver")


def _member(rank: int, function: Callable[..., None], folder: str, *args: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)  # as tests begin
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        function(rank, folder, *args)
    finally:
        dist.destroy_process_group()
