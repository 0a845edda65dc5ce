from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged import DTYPES, IMPLEMENTATIONS, ROW_SHAPES, masks, raw, same, values
from usable import gpu_waits, skip_unless_usable, unchecked

from lavit.kernels import Ragged, pack, pad, partition, unpack, unpad

SETTINGS = [(False, 0), (True, 0), (False, 5), (True, 5)]  # dropped, rows beyond the total


def layout(keep, dropped):
    order, cu_kept, cu_dropped = partition(keep, impl="reference")
    return (order, cu_dropped, ~keep) if dropped else (order, cu_kept, keep)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(keep=masks(), dtype=st.sampled_from(DTYPES), row=st.sampled_from(ROW_SHAPES), how=st.sampled_from(SETTINGS))
def test_pack_is_boolean_indexing_and_zeros_beyond(impl, keep, dtype, row, how):
    dropped, spare = how
    order, cu, chosen = layout(keep, dropped)
    x = values((*keep.shape, *row), dtype)
    want = raw(x)[chosen]
    want = torch.cat([want, want.new_zeros((spare, *row))])
    got = pack(x, order, cu, total=int(cu[-1]) + spare, dropped=dropped, impl=impl)
    assert got.dtype == dtype and same(raw(got), want)
    assert same(pack(x, order, cu, dropped=dropped, impl=impl), got[: int(cu[-1])])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(keep=masks(), dtype=st.sampled_from(DTYPES), row=st.sampled_from(ROW_SHAPES), how=st.sampled_from(SETTINGS))
def test_unpack_puts_rows_back_and_fills_the_rest(impl, keep, dtype, row, how):
    dropped, spare = how
    order, cu, chosen = layout(keep, dropped)
    x = values((*keep.shape, *row), dtype)
    packed = pack(x, order, cu, total=int(cu[-1]) + spare, dropped=dropped, impl="reference")
    got = unpack(packed, order, cu, keep.shape[1], fill=1.0, dropped=dropped, impl=impl)
    want = raw(torch.full(x.shape, 1.0, dtype=dtype)).clone()
    want[chosen] = raw(x)[chosen]
    assert got.dtype == dtype and same(raw(got), want)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_strided_inputs_give_what_their_copies_give(impl):
    keep = torch.rand(4, 9) > 0.5
    order, cu, _ = partition(keep)
    x = torch.randn(9, 6, 4).permute(2, 0, 1)[..., ::2]
    order_strided = order.repeat_interleave(2, dim=1)[:, ::2]
    packed = pack(x, order_strided, cu, impl=impl)
    assert same(packed, x[keep])
    wide = torch.stack([packed, packed], -1)[..., 0]
    assert same(unpack(wide, order_strided, cu, 9, impl=impl), x.masked_fill(~keep[..., None], 0))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("row_bytes", [1, 7, 16, 4096, 65536])
def test_rows_from_one_byte_to_64_kilobytes(impl, row_bytes):
    keep = torch.rand(6, 21) > 0.4
    order, cu, chosen = layout(keep, dropped=False)
    x = torch.randint(0, 256, (6, 21, row_bytes), dtype=torch.uint8)
    packed = pack(x, order, cu, impl=impl)
    assert same(packed, x[chosen])
    assert same(unpack(packed, order, cu, 21, fill=255, impl=impl), x.masked_fill(~keep[..., None], 255))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_are_the_inverse_movement(impl, dropped):
    order, cu, _ = layout(torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool), dropped)
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: pack(x, order, cu, total=9, dropped=dropped, impl=impl), x)
    v = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda v: unpack(v, order, cu, 4, fill=3.0, dropped=dropped, impl=impl), v)
    torch.autograd.gradgradcheck(lambda x: pack(x, order, cu, total=9, dropped=dropped, impl=impl).square(), x)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_they_are_good_citizens_of_torch(impl):
    order, cu, _ = partition(torch.rand(3, 6) > 0.5)
    x = torch.randn(3, 6, 2, requires_grad=True)
    torch.library.opcheck(torch.ops.lavit.pack, (x, order, cu, 18, False, impl))
    torch.library.opcheck(torch.ops.lavit.unpack, (torch.randn(18, 2, requires_grad=True), order, cu, 0.0, True, impl))


def test_compiled_whole_for_any_batch():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def there_and_back(x, keep):
        order, cu, _ = partition(keep)
        return unpack(pack(x, order, cu, total=keep.numel()), order, cu, keep.shape[1], fill=-1.0)

    for batch, patches in ((2, 5), (3, 8), (6, 4)):
        x, keep = torch.randn(batch, patches, 3, requires_grad=True), torch.rand(batch, patches) > 0.5
        out = there_and_back(x, keep)
        assert same(out, x.masked_fill(~keep[..., None], -1.0))
        out.sum().backward()
        assert same(x.grad, keep[..., None].expand_as(x).to(x.dtype))


def test_a_total_left_to_the_device_compiles_too():
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
        def doubled(x, keep):
            order, cu, _ = partition(keep)
            return pack(x, order, cu) * 2

        x, keep = torch.randn(3, 7, 2), torch.rand(3, 7) > 0.5
        assert same(doubled(x, keep), x[keep] * 2)


def test_offsets_and_indices_that_do_not_fit_touch_nothing_outside(device):
    """The compiled kernels are asked without the checks: they must stay in bounds."""
    skip_unless_usable("pack", "cpp", device)
    x = torch.ones(2, 3, 2, device=device)
    order = torch.tensor([[0, 99, -5], [2, 1, 0]], dtype=torch.int32, device=device)
    for cu in ([0, 3, 6], [0, 3, 900], [-4, 2, 1], [5, 3, 2], [0, -7, 2**31 - 1], [2**31 - 1, -(2**31), 2**31 - 1]):
        cu = torch.tensor(cu, dtype=torch.int32, device=device)
        for dropped in (False, True):
            with unchecked():
                packed = pack(x, order, cu, total=8, dropped=dropped, impl="cpp")
                assert bool(((packed == 0) | (packed == 1)).all())
                unpack(packed, order, cu, 3, dropped=dropped, impl="cpp")


def test_errors_name_the_argument():
    x, order, cu = torch.zeros(2, 3, 1), torch.zeros(2, 3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    with pytest.raises(TypeError, match="order: expected int32 patch indices, got torch.int64"):
        pack(x, order.long(), cu)
    with pytest.raises(ValueError, match=r"x: expected shape \(2, 3, '...'\) to match order, got \(2, 4\)"):
        pack(torch.zeros(2, 4), order, cu)
    with pytest.raises(ValueError, match=r"cu: expected shape \(3,\) for a batch of 2, got \(2,\)"):
        pack(x, order, cu[:2])
    with pytest.raises(TypeError, match="cu: expected int32 offsets, got torch.float32"):
        pack(x, order, cu.float())
    with pytest.raises(ValueError, match="total: expected an upper bound >= 0 or None, got -1"):
        pack(x, order, cu, total=-1)
    with pytest.raises(ValueError, match=r"num_patches: expected 3 to match order \(2, 3\), got 4"):
        unpack(torch.zeros(0, 1), order, cu, 4)
    with pytest.raises(ValueError, match="order: expected device meta, got cpu"):
        pack(x.to("meta"), order, cu)
    with pytest.raises(ValueError, match="cu: expected device meta, got cpu"):
        pack(x.to("meta"), order.to("meta"), cu)
    with pytest.raises(ValueError, match=r"order: expected shape \(B, N\), got \(3,\)"):
        pack(x, order[0], cu)
    with pytest.raises(ValueError, match=r"cu: expected offsets of shape \(B \+ 1,\), got \(1, 3\)"):
        pack(x, order, cu[None])
    rows = torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"values: expected shape \(T, ...\), got a scalar"):
        unpack(rows.sum(), order, cu, 3)
    with pytest.raises(TypeError, match="order: expected int32 patch indices, got torch.float32"):
        unpack(rows, order.float(), cu, 3)
    with pytest.raises(ValueError, match=r"cu: expected shape \(3,\) for a batch of 2, got \(4,\)"):
        unpack(rows, order, torch.zeros(4, dtype=torch.int32), 3)
    with pytest.raises(ValueError, match="order: expected device meta, got cpu"):
        unpack(rows.to("meta"), order, cu, 3)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_what_tensors_hold_is_checked(impl):
    x, order = torch.zeros(2, 3, 1), torch.arange(3, dtype=torch.int32).expand(2, 3)
    cu = torch.tensor([0, 2, 5], dtype=torch.int32)
    pack(x, order, cu, impl=impl)
    with pytest.raises(ValueError, match="order: row 1 is not a permutation of 0..2"):
        pack(x, torch.tensor([[0, 1, 2], [0, 0, 2]], dtype=torch.int32), cu, impl=impl)
    with pytest.raises(ValueError, match="cu: expected non-decreasing offsets, they fall after entry 1"):
        pack(x, order, torch.tensor([0, 2, 1], dtype=torch.int32), impl=impl)
    with pytest.raises(ValueError, match="cu: expected at most 3 rows a sequence, got 4 in sequence 0"):
        pack(x, order, torch.tensor([0, 4, 5], dtype=torch.int32), impl=impl)
    with pytest.raises(ValueError, match="cu: expected offsets within 4 rows, got 5"):
        pack(x, order, cu, total=4, impl=impl)
    with pytest.raises(ValueError, match="cu: expected offsets from 0, got 1 first"):
        pack(x, order, cu + 1, impl=impl)
    with pytest.raises(ValueError, match="order: row 0 is not a permutation of 0..2"):
        unpack(torch.zeros(5), torch.tensor([[0, 1, 3], [0, 1, 2]], dtype=torch.int32), cu, 3, impl=impl)
    with pytest.raises(ValueError, match="cu: expected offsets within 4 rows, got 5"):
        unpack(torch.zeros(4), order, cu, 3, impl=impl)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, row", [(torch.bfloat16, 1408), (torch.bfloat16, 3), (torch.uint8, 1),
                                        (torch.float32, 20000), (torch.complex128, 5), (torch.int64, 0),
                                        (torch.uint16, 7), (torch.float8_e8m0fnu, 65536), (torch.complex32, 3)])
@pytest.mark.parametrize("dropped", [False, True])
def test_gpu_equals_the_reference_without_synchronising(dtype, row, dropped):
    keep = torch.rand(37, 29) > 0.6
    keep[3], keep[4] = True, False
    order, cu, _ = layout(keep, dropped)
    x = values((37, 29, row), dtype)
    total = int(cu[-1]) + 11
    gpu = [t.cuda() for t in (x, order, cu)]
    torch.cuda.synchronize()
    with gpu_waits("error"):
        packed = pack(*gpu, total=total, dropped=dropped, impl="cpp")
        back = unpack(packed, gpu[1], gpu[2], 29, fill=7, dropped=dropped, impl="cpp")
    want = pack(x, order, cu, total=total, dropped=dropped, impl="reference")
    assert same(packed.cpu(), want)
    assert same(back.cpu(), unpack(want, order, cu, 29, fill=7, dropped=dropped, impl="reference"))


@pytest.mark.gpu
def test_a_total_left_to_the_gpu_costs_one_wait():
    x, keep = torch.randn(4, 9, 3, device="cuda"), torch.rand(4, 9, device="cuda") > 0.5
    order, cu, _ = partition(keep, impl="cpp")
    with pytest.warns(UserWarning, match="synchronizing") as caught:
        with gpu_waits("warn"):
            packed = pack(x, order, cu, impl="cpp")
    assert len(caught) == 1
    assert torch.equal(packed, x[keep])


@pytest.mark.gpu
def test_gpu_graph_replays_with_new_data():
    def there_and_back(x, keep):
        order, cu, _ = partition(keep, impl="cpp")
        rows = pack(x, order, cu, total=128, impl="cpp")
        padded, mask, _ = pad(Ragged(rows, cu, 16), side="left", impl="cpp")
        rows = unpad(padded, cu, side="left", total=128, impl="cpp")
        return rows, mask, unpack(rows, order, cu, 16, fill=-1.0, impl="cpp")

    keep, x = torch.rand(8, 16, device="cuda") > 0.5, torch.randn(8, 16, 5, device="cuda")
    there_and_back(x, keep)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows, mask, back = there_and_back(x, keep)
    keep.copy_(torch.rand(8, 16) > 0.3)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(rows[: int(keep.sum())], x[keep])
    assert torch.equal(mask.sum(1), keep.sum(1))
    assert torch.equal(back, x.masked_fill(~keep[..., None], -1.0))
