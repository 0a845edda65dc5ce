from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged import DTYPES, IMPLEMENTATIONS, ROW_SHAPES, offsets, same, values

from lavit.kernels import Ragged, pad, unpad

lengths = st.lists(st.integers(0, 9), max_size=6)


def bytes_of(x):
    """float8 has no assignment or comparison of its own."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(n=lengths, length=st.integers(0, 12), dtype=st.sampled_from(DTYPES), row=st.sampled_from(ROW_SHAPES),
       side=st.sampled_from(["left", "right"]), spare=st.integers(0, 2))
def test_pad_lays_sequences_side_by_side(impl, n, length, dtype, row, side, spare):
    cu = offsets(n)
    rows = values((sum(n) + spare, *row), dtype)
    padded, mask, position = pad(Ragged(rows, cu, 9), length, side=side, value=1, impl=impl)
    want = bytes_of(torch.full((len(n), length, *row), 1, dtype=dtype)).clone()
    want_mask, want_position = torch.zeros(len(n), length, dtype=torch.bool), torch.zeros(len(n), length).long()
    for b, m in enumerate(n):
        cut = min(m, length)
        place = slice(length - cut, length) if side == "left" else slice(0, cut)
        want[b, place] = bytes_of(rows)[cu[b] : cu[b] + cut]
        want_mask[b, place] = True
        want_position[b, place] = torch.arange(cut)
    assert same(bytes_of(padded), want)
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
    assert same(got, torch.cat([bytes_of(rows), bytes_of(rows).new_zeros((spare, *row))]).view(dtype))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_was_cut_comes_back_as_zeros(impl, side):
    cu, rows = offsets([4, 1]), torch.arange(1.0, 6.0)
    padded, mask, _ = pad(Ragged(rows, cu, 4), 2, side=side, impl=impl)
    assert mask.sum() == 3
    assert unpad(padded, cu, side=side, impl=impl).tolist() == [1, 2, 0, 0, 5]


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
    torch.library.opcheck(torch.ops.lavit.pad, (torch.randn(8, 2, requires_grad=True), cu, 6, True, 0.0, impl))
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


@pytest.mark.gpu
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype, row", [(torch.bfloat16, 1408), (torch.uint8, 3), (torch.float32, 0)])
def test_gpu_equals_the_reference_without_synchronising(side, dtype, row):
    n = [5, 0, 31, 1, 17]
    cu, rows = offsets(n), values((sum(n), row), dtype)
    ragged = Ragged(rows.cuda(), cu.cuda(), 31)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = pad(ragged, 20, side=side, value=3, impl="cpp")
        back = unpad(got[0], ragged.cu_seqlens, side=side, total=60, impl="cpp")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    want = pad(Ragged(rows, cu, 31), 20, side=side, value=3, impl="reference")
    for a, b in zip(got, want, strict=True):
        assert same(a.cpu(), b)
    assert same(back.cpu(), unpad(want[0], cu, side=side, total=60, impl="reference"))
