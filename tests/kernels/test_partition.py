from __future__ import annotations

import pytest
import torch
from hypothesis import given
from ragged import IMPLEMENTATIONS, masks, offsets
from usable import gpu_waits

from lavit.kernels import partition


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(keep=masks())
def test_kept_then_dropped_each_in_raster_order(impl, keep):
    order, cu_kept, cu_dropped = partition(keep, impl=impl)
    rows = keep.tolist()
    want = [[p for p, k in enumerate(row) if k] + [p for p, k in enumerate(row) if not k] for row in rows]
    assert torch.equal(order, torch.tensor(want, dtype=torch.int32).reshape(keep.shape))
    assert torch.equal(cu_kept, offsets([sum(row) for row in rows]))
    assert torch.equal(cu_dropped, offsets([len(row) - sum(row) for row in rows]))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_everything_but_zero_is_kept(impl, dtype):
    keep = torch.tensor([[0, 1, 0, 2], [3, 0, 0, 0]]).to(dtype)
    assert partition(keep, impl=impl)[0].tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_strided_mask_is_read_by_its_strides(impl):
    keep = torch.rand(7, 5) > 0.5
    for got, want in zip(partition(keep.T, impl=impl), partition(keep.T.contiguous(), impl="reference"), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_many_images_are_scanned_whatever_the_number_of_threads(impl):
    keep = torch.rand(3001, 67) > 0.7
    order, cu_kept, _ = partition(keep, impl=impl)
    assert torch.equal(cu_kept[1:], keep.sum(1).cumsum(0).int())
    assert torch.equal(keep.gather(1, order.long()).int().diff(dim=1).clamp(min=0).sum(), torch.tensor(0))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_it_is_a_good_citizen_of_torch(impl):
    torch.library.opcheck(torch.ops.lavit.partition, (torch.rand(3, 6) > 0.5, impl))


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"keep: expected shape \(B, N\), got \(4,\)"):
        partition(torch.ones(4))
    with pytest.raises(TypeError, match="keep: .* got torch.complex64"):
        partition(torch.ones(2, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="keep: expected at most 2147483647 patches in all, got 4294967296"):
        partition(torch.ones(1, 1, dtype=torch.bool).expand(2**16, 2**16))
    with pytest.raises(ValueError, match="impl=: partition has the implementations cpp, reference; got 'rust'"):
        partition(torch.ones(2, 2), impl="rust")


def test_compiled_whole_for_any_batch():
    compiled = torch.compile(partition, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 5), (3, 8), (7, 4)):
        keep = torch.rand(shape) > 0.5
        for got, want in zip(compiled(keep), partition(keep, impl="reference"), strict=True):
            assert torch.equal(got, want)


# On both sides of the sizes from which the last block adds up the counts; masks that do not begin at a whole vector.
@pytest.mark.gpu
@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("shape", [(1, 1), (3, 0), (0, 5), (5, 255), (256, 256), (300, 257), (513, 257), (2, 1031),
                                   (1, 140_001), (1024, 64), (1025, 64), (70001, 3)])
def test_gpu_equals_the_reference_without_synchronising(shape, first):
    mask = torch.rand(first + shape[0] * shape[1]) > 0.6
    keep, on_gpu = mask[first:].view(shape), mask.cuda()[first:].view(shape)
    assert on_gpu.is_contiguous()
    torch.cuda.synchronize()
    with gpu_waits("error"):
        got = partition(on_gpu, impl="cpp")
    for a, b in zip(got, partition(keep, impl="reference"), strict=True):
        assert torch.equal(a.cpu(), b)
