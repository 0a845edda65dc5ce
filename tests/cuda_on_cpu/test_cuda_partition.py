from __future__ import annotations

import pytest
import torch
from emulator import Call, Refused, Shifted, Sparse

from lavit.kernels.partition import reference

# Around a warp, a block and sixteen bytes; empty images and batches.
SHAPES = [(0, 5), (1, 1), (3, 0), (1, 31), (2, 32), (2, 33), (5, 15), (7, 17), (3, 255), (3, 256), (3, 257), (4, 515)]
# On both sides of the sizes from which the last block adds the counts up.
LARGE = [(2, 70_001), (513, 257), (130, 300), (1, 131_072), (1, 131_073)]


def same(got, keep):
    for name, a, b in zip(("order", "cu_kept", "cu_dropped"), got, reference.partition(keep), strict=True):
        assert torch.equal(a, b), f"{name} of {tuple(keep.shape)}"


def masks(shapes):
    for shape in shapes:
        for share in (0.0, 0.4, 1.0):
            yield torch.rand(shape) < share


def test_order_and_offsets_are_the_references(ask):
    keeps = list(masks(SHAPES))
    for keep, got in zip(keeps, ask([Call("partition", [keep]) for keep in keeps]), strict=True):
        same(got, keep)


@pytest.mark.parametrize("shape", LARGE)
def test_large_batches_are_the_references(ask, shape):
    keep = torch.rand(shape) < 0.6
    same(ask([Call("partition", [keep])])[0], keep)


def test_masks_that_begin_anywhere_are_read_alike(ask):
    keeps = [torch.rand(3, n) < 0.5 for n in (1, 7, 23, 61, 300)]
    calls = [(keep, shift) for keep in keeps for shift in (1, 3, 8, 15)]
    for (keep, _), got in zip(calls, ask([Call("partition", [Shifted(k, s)]) for k, s in calls]), strict=True):
        same(got, keep)


def test_any_byte_but_zero_is_kept(ask):
    numbers = torch.randint(0, 4, (5, 77), dtype=torch.uint8)
    same(ask([Call("partition", [numbers.view(torch.bool)])])[0], numbers != 0)


def test_patches_past_two_gigabytes(ask):
    """2^31 - 64 patches in images of 64: the order alone takes 8 GB, of which the first and the last image exist."""
    batch = 2**25 - 1
    keep = torch.rand(2, 64) < 0.5
    mask = Sparse((batch, 64), torch.bool, {0: raw(keep[0]), 64 * (batch - 1): raw(keep[1])})
    row = 4 * 64
    reads = [(0, 0, row), (0, row * (batch - 1), row), (1, 4, 4), (1, 4 * batch, 4)]
    ends = [(0, 0), (batch - 1, batch - 1)]
    first, last, *counts = ask([Call("partition", [mask], blocks=ends, reads=reads)])[0]
    order, _, _ = reference.partition(keep)
    assert [first, last] == [raw(order[0]), raw(order[1])]
    assert [int.from_bytes(n, "little") for n in counts] == keep.sum(1).tolist()


def raw(x: torch.Tensor) -> bytes:
    return x.numpy().tobytes()


def test_it_runs_on_the_device_of_its_mask(ask):
    keep = torch.rand(3, 40) < 0.5
    same(ask([Call("partition", [keep], device=1)])[0], keep)


def test_what_is_no_mask_is_refused(ask):
    for got in ask([Call("partition", [torch.ones(2, 3, dtype=torch.uint8)]), Call("partition", [torch.rand(4) < 1])]):
        assert isinstance(got, Refused) and "keep: expected a contiguous bool mask" in str(got)
