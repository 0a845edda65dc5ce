from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged import DTYPES, IMPLEMENTATIONS, ROW_SHAPES, offsets, raw, same, values
from usable import gpu_waits, skip_unless_usable, unchecked

from lavit.kernels import Ragged, pad, unpad
from lavit.threads import on as on_threads

lengths = st.lists(st.integers(0, 9), max_size=6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(n=lengths, length=st.integers(0, 12), dtype=st.sampled_from(DTYPES), row=st.sampled_from(ROW_SHAPES),
       side=st.sampled_from(["left", "right"]), spare=st.integers(0, 2))
def test_pad_lays_sequences_side_by_side(impl, n, length, dtype, row, side, spare):
    cu = offsets(n)
    rows = values((sum(n) + spare, *row), dtype)
    padded, mask, position = pad(Ragged(rows, cu, 9), length, side=side, value=1, impl=impl)
    want = raw(torch.full((len(n), length, *row), 1, dtype=dtype)).clone()
    want_mask, want_position = torch.zeros(len(n), length, dtype=torch.bool), torch.zeros(len(n), length).long()
    for b, m in enumerate(n):
        cut = min(m, length)
        place = slice(length - cut, length) if side == "left" else slice(0, cut)
        want[b, place] = raw(rows)[cu[b] : cu[b] + cut]
        want_mask[b, place] = True
        want_position[b, place] = torch.arange(cut)
    assert padded.dtype == dtype and same(raw(padded), want)
    assert same(mask, want_mask)
    assert same(position, want_position)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(n=lengths, dtype=st.sampled_from(DTYPES), row=st.sampled_from(ROW_SHAPES),
       side=st.sampled_from(["left", "right"]), spare=st.integers(0, 2))
def test_unpad_undoes_pad(impl, n, dtype, row, side, spare):
    cu = offsets(n)
    rows = values((sum(n), *row), dtype)
    padded, _, _ = pad(Ragged(rows, cu, 9), side=side, value=1, impl="reference")
    assert same(unpad(padded, cu, side=side, impl=impl), rows)
    got = unpad(padded, cu, side=side, total=sum(n) + spare, impl=impl)
    assert same(got, torch.cat([raw(rows), raw(rows).new_zeros((spare, *row))]).view(dtype))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_was_cut_comes_back_as_zeros(impl, side):
    cu, rows = offsets([4, 1]), torch.arange(1.0, 6.0)
    padded, mask, _ = pad(Ragged(rows, cu, 4), 2, side=side, impl=impl)
    assert mask.sum() == 3
    assert unpad(padded, cu, side=side, impl=impl).tolist() == [1, 2, 0, 0, 5]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_strided_inputs_give_what_their_copies_give(impl):
    cu, rows = offsets([2, 0, 3]), torch.randn(5, 2, 4)
    strided = rows.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    wide = cu.repeat_interleave(2)[::2]
    assert not strided.is_contiguous() and not wide.is_contiguous()
    padded, _, _ = pad(Ragged(strided, wide, 3), impl=impl)
    assert same(padded, pad(Ragged(rows, cu, 3), impl="reference")[0])
    assert same(unpad(padded.transpose(0, 1).contiguous().transpose(0, 1), wide, impl=impl), rows)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("row_bytes", [1, 7, 16, 4096, 65536])
def test_rows_from_one_byte_to_64_kilobytes(impl, side, row_bytes):
    n, rows = [3, 0, 5], torch.randint(0, 256, (8, row_bytes), dtype=torch.uint8)
    padded, mask, _ = pad(Ragged(rows, offsets(n), 5), 6, side=side, value=255, impl=impl)
    assert same(padded[mask], rows)
    assert bool((padded[~mask] == 255).all())
    assert same(unpad(padded, offsets(n), side=side, impl=impl), rows)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_gradients_are_the_inverse_movement(impl, side):
    cu = offsets([3, 0, 5])
    v = torch.randn(10, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda v: pad(Ragged(v, cu, 5), 4, side=side, value=2, impl=impl)[0], v)
    p = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda p: unpad(p, cu, side=side, total=9, impl=impl), p)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_they_are_good_citizens_of_torch(impl):
    cu = offsets([3, 0, 5])
    torch.library.opcheck(torch.ops.lavit.pad, (torch.randn(8, 2, requires_grad=True), cu, 6, False, True, 0.0, impl))
    torch.library.opcheck(torch.ops.lavit.unpad, (torch.randn(3, 6, 2, requires_grad=True), cu, False, 9, impl))


def test_compiled_whole_for_any_batch():
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def there_and_back(values, cu, length: int):
        padded, mask, position = pad(Ragged(values, cu, length), side="left")
        return unpad(padded + mask[..., None] + position[..., None], cu, side="left", total=values.shape[0])

    for n in ([2, 5], [1, 0, 7], [4, 4, 4, 4]):
        v = torch.randn(sum(n), 3)
        ranks = torch.cat([torch.arange(m) for m in n])[:, None]
        torch.testing.assert_close(there_and_back(v, offsets(n), max(n)), v + 1 + ranks)


def test_errors_name_the_argument():
    ragged = Ragged(torch.zeros(3), offsets([3]), 3)
    with pytest.raises(ValueError, match="side: expected 'left' or 'right', got 'top'"):
        pad(ragged, side="top")
    with pytest.raises(ValueError, match="length: expected >= 0, got -2"):
        pad(ragged, -2)
    with pytest.raises(ValueError, match=r"padded: expected shape \(B, L, ...\), got \(3,\)"):
        unpad(torch.zeros(3), ragged.cu_seqlens)
    with pytest.raises(ValueError, match=r"cu_seqlens: expected shape \(4,\) for a batch of 3, got \(2,\)"):
        unpad(torch.zeros(3, 2), ragged.cu_seqlens)
    with pytest.raises(ValueError, match="total: expected an upper bound >= 0 or None, got -1"):
        unpad(torch.zeros(1, 3), ragged.cu_seqlens, total=-1)
    with pytest.raises(TypeError, match="ragged.cu_seqlens: expected int32 offsets, got torch.int64"):
        pad(Ragged(ragged.values, ragged.cu_seqlens.long(), 3))
    with pytest.raises(TypeError, match="cu_seqlens: expected int32 offsets, got torch.int64"):
        unpad(torch.zeros(1, 3), ragged.cu_seqlens.long())
    with pytest.raises(ValueError, match="ragged.cu_seqlens: expected device meta, got cpu"):
        pad(Ragged(ragged.values.to("meta"), ragged.cu_seqlens, 3))
    with pytest.raises(ValueError, match="cu_seqlens: expected device meta, got cpu"):
        unpad(torch.zeros(1, 3, device="meta"), ragged.cu_seqlens)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_what_tensors_hold_is_checked(impl):
    rows, padded = torch.zeros(3), torch.zeros(2, 2)
    pad(Ragged(rows, offsets([1, 2]), 2), impl=impl)
    with pytest.raises(ValueError, match="cu_seqlens: expected offsets within 3 rows, got 4"):
        pad(Ragged(rows, offsets([2, 2]), 2), impl=impl)
    with pytest.raises(ValueError, match="cu_seqlens: expected non-decreasing offsets, they fall after entry 1"):
        pad(Ragged(rows, torch.tensor([0, 3, 1], dtype=torch.int32), 2), impl=impl)
    with pytest.raises(ValueError, match="cu_seqlens: expected offsets from 0, got 1 first"):
        unpad(padded, offsets([1, 2]) + 1, impl=impl)
    with pytest.raises(ValueError, match="cu_seqlens: expected offsets within 2 rows, got 3"):
        unpad(padded, offsets([1, 2]), total=2, impl=impl)


@pytest.mark.parametrize("side", ["left", "right"])
def test_offsets_that_do_not_fit_touch_nothing_outside(device, side):
    """The compiled kernels are asked without the checks: they must stay in bounds."""
    skip_unless_usable("pad", "cpp", device)
    rows, padded = torch.ones(4, 3, device=device), torch.ones(2, 5, 3, device=device)
    for cu in ([0, 3, 6], [0, 3, 900], [-4, 2, 1], [5, 3, 2], [0, -7, 2**31 - 1], [2**31 - 1, -(2**31), 2**31 - 1]):
        cu = torch.tensor(cu, dtype=torch.int32, device=device)
        with unchecked():
            got, _, _ = pad(Ragged(rows, cu, 5), side=side, impl="cpp")
            back = unpad(padded, cu, side=side, total=8, impl="cpp")
        assert bool(((got == 0) | (got == 1)).all())
        assert bool(((back == 0) | (back == 1)).all())


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_before_the_first_offset_are_zero_whatever_the_number_of_threads(impl, threads):
    wide = torch.tensor([1.0, 2, 3])[None, :, None].expand(1, 3, 8192)  # of which every row is a thread's work
    with unchecked(), on_threads(threads):
        got = unpad(wide, torch.tensor([1, 3], dtype=torch.int32), total=4, impl=impl)
    assert got.unique(dim=1).flatten().tolist() == [0, 1, 2, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype, row", [(torch.bfloat16, 1408), (torch.uint8, 3), (torch.float32, 0)])
def test_gpu_equals_the_reference_without_synchronising(side, dtype, row):
    n = [5, 0, 31, 1, 17]
    cu, rows = offsets(n), values((sum(n), row), dtype)
    ragged = Ragged(rows.cuda(), cu.cuda(), 31)
    torch.cuda.synchronize()
    with gpu_waits("error"):
        got = pad(ragged, 20, side=side, value=3, impl="cpp")
        back = unpad(got[0], ragged.cu_seqlens, side=side, total=60, impl="cpp")
    want = pad(Ragged(rows, cu, 31), 20, side=side, value=3, impl="reference")
    for a, b in zip(got, want, strict=True):
        assert same(a.cpu(), b)
    assert same(back.cpu(), unpad(want[0], cu, side=side, total=60, impl="reference"))
