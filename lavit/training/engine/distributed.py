"""The few things a run needs to know of its sibling processes. Everything is a no-op in a run of one process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others. The first one works alone now and then, on held-out data and where it
trains a first encoder, and NCCL's own limit of ten minutes would end the run meanwhile. A process that dies ends all at
once, by torchrun."""


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def launched_rank() -> int:
    """This process's number among those that torchrun started; known outside the group, too."""
    return rank() if is_distributed() else int(os.environ.get("RANK", "0"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the group that torchrun set up in the environment, and leaves it at the end.

    NCCL for CUDA, gloo for the CPU, with `PATIENCE`. Without torchrun's variables, or inside a group that exists
    already, nothing happens.
    """
    if is_distributed() or not dist.is_available() or int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """"auto": this process's CUDA device if there is one, else the CPU; ValueError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device: {name} was asked for, but torch finds no CUDA device")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device


def barrier() -> None:
    if is_distributed():
        dist.barrier()


def reduce_sum(value: Tensor) -> Tensor:
    """`value` summed over the processes, in place."""
    if is_distributed():
        dist.all_reduce(value)
    return value


def shares(counts: Tensor) -> tuple[Tensor, Tensor]:
    """What the micro-batches of one step are of the whole of it. One small message.

    counts: (m, n) float64, for each of this process's m micro-batches n numbers of things (labels, images), each the
    number that one part of the loss is a mean over. Returns (m, n) float32 factors, by which the means are multiplied
    so that the mean over the micro-batches of all processes is the mean over all things; and (n,), the numbers of all.
    """
    totals = reduce_sum(counts.sum(0))
    factors = counts / totals.clamp(min=1) * (len(counts) * world_size())
    return factors.float(), totals


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """rows (n,), n the process's own -> those of all processes in the order of the processes, and the number before
    one's own. The host waits for the device."""
    if not is_distributed():
        return rows, 0
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    lengths = torch.cat(sizes).tolist()
    padded = rows.new_zeros(max(lengths))
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded)
    together = torch.cat([part[:length] for part, length in zip(found, lengths, strict=True)])
    return together, sum(lengths[: rank()])


def any_of(flags: Tensor) -> Tensor:
    """Flags (0 or 1) that are set on any process, in place."""
    if is_distributed():
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return flags


def first_says(answer: bool) -> bool:
    """The first process's answer, on all."""
    if not is_distributed():
        return answer
    flag = torch.tensor(int(answer), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(flag, 0)
    return bool(flag.item())


def from_first(value: Any) -> Any:
    """The first process's value, which can be pickled, on all."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def from_all(value: Any) -> list[Any]:
    """Every process's value, which can be pickled, in the order of the processes, on all."""
    if not is_distributed():
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def replicate(module: nn.Module, device: torch.device) -> nn.Module:
    """The module itself, or, in a run of several processes, a wrapper that averages its gradients over them.

    Buffers are not sent: those that training moves are kept alike by what moves them.
    """
    if not is_distributed():
        return module
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


def share(tensors: Iterable[Tensor]) -> None:
    """Overwrites the tensors of every process by those of the first."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)
