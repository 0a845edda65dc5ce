"""The counter of host reads sees every way of reading, and nothing else: what stands on it can fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from host_reads import host_reads

READS = {
    "item": lambda x: x[0].item(),
    "int": lambda x: int(x[1]),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool((x > 0).all()),
    "if": lambda x: 1 if x.max() > 2 else 0,
    "index": lambda x: [1, 2, 3][x[0].long()],
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "asarray": lambda x: np.asarray(x),
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x + 1),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
    "format": lambda x: f"{x.sum()}",
}


@pytest.mark.parametrize("name", READS)
def test_each_way_of_reading_is_counted(name: str) -> None:
    with host_reads() as reads:
        READS[name](torch.tensor([0.0, 1.0, 2.0]))
    assert len(reads) == (2 if name == "repeat_interleave" else 1), reads


def test_reads_within_an_operator_are_counted() -> None:
    from lavit.kernels import pack, partition

    keep = torch.rand(3, 5) > 0.5
    order, cu, _ = partition(keep)
    with host_reads() as reads:
        pack(torch.randn(3, 5, 2), order, cu)
    assert len(reads) == 1
    with host_reads() as reads:
        pack(torch.randn(3, 5, 2), order, cu, total=15)
    assert reads == []


def test_computing_is_no_reading() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    with host_reads() as reads:
        torch.where(x > 0, x, 0).softmax(-1)[:, 1:].cumsum(0).sum().backward()
    assert reads == []
