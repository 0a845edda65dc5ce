from __future__ import annotations

import pytest
import torch
from emulator import Call, Host, Refused, Shifted, as_bytes

from lavit.kernels.pack import reference as pack
from lavit.kernels.pad import reference as pad
from lavit.kernels.partition.reference import offsets, partition

LENGTHS = [0, 1, 31, 32, 33, 255, 256, 257]
FEW = [3, 0, 1, 7]
DTYPES = [
    getattr(torch, name)
    for name in (
        "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float8_e4m3fn float8_e5m2 float8_e4m3fnuz "
        "float8_e5m2fnuz float8_e8m0fnu float16 bfloat16 float32 float64 complex32 complex64 complex128"
    ).split()
]


def values(shape, dtype):
    """Numbers that tell rows apart in every dtype."""
    numbers = torch.randint(0, 120, shape)
    return numbers % 2 == 0 if dtype == torch.bool else numbers.float().to(dtype)


def element(fill, dtype):
    return Host(torch.full((1,), fill, dtype=dtype))


def ragged(lengths, row, dtype, dropped=False):
    """x (B, N, *row), its order and the offsets of what is kept or dropped, as many as the lengths say."""
    patches = max(lengths, default=0) + 3
    keep = torch.stack([torch.randperm(patches) < n for n in lengths]) if lengths else torch.zeros(0, 5) > 0
    order, cu_kept, cu_dropped = partition(~keep if dropped else keep)
    return values((*keep.shape, *row), dtype), order, cu_dropped if dropped else cu_kept


def check(ask, cases):
    """cases: (call, wanted results)."""
    for got, (call, wanted) in zip(ask([call for call, _ in cases]), cases, strict=True):
        assert not isinstance(got, Refused), got
        for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
            assert tuple(a.shape) == tuple(b.shape)
            assert as_bytes(a) == as_bytes(b), f"{call.operator}, result {number}, {tuple(b.shape)} of {b.dtype}"


def packing(lengths, row, dtype, dropped=False, spare=0, fill=1.0, shift=0):
    """pack and unpack of what it packed."""
    x, order, cu = ragged(lengths, row, dtype, dropped)
    total = int(cu[-1]) + spare
    packed = pack.pack(x, order, cu, total, dropped)
    back = pack.unpack(packed, order, cu, fill, dropped)
    return [
        (Call("pack", [Shifted(x, shift), order, cu, total, dropped]), [packed]),
        (Call("unpack", [Shifted(packed, shift), order, cu, element(fill, dtype), dropped]), [back]),
    ]


def padding(lengths, row, dtype, left=False, length=None, spare=0, fill=3.0, shift=0):
    """pad and unpad of what it padded."""
    cu = offsets(torch.tensor(lengths, dtype=torch.int64))
    rows = values((int(cu[-1]) + spare, *row), dtype)
    length = max(lengths, default=2) if length is None else length
    padded = pad.pad(rows, cu, length, left, fill)
    back = pad.unpad(padded[0], cu, left, rows.shape[0])
    return [
        (Call("pad", [Shifted(rows, shift), cu, length, left, element(fill, dtype)]), list(padded)),
        (Call("unpad", [Shifted(padded[0], shift), cu, left, rows.shape[0]]), [back]),
    ]


@pytest.mark.parametrize("both", [False, True])
def test_lengths_around_a_warp_and_a_block(ask, both):
    """both: the dropped patches and left padding. 88 elements are 11 vectors in float16 and 5.5 in int8."""
    check(ask, packing(LENGTHS, (88,), torch.float16, both, spare=5) + padding(LENGTHS, (88,), torch.float16, both))
    check(ask, packing(LENGTHS, (3,), torch.int8, both) + padding(LENGTHS, (3,), torch.int8, both, length=200, spare=4))


def test_every_dtype_moves_as_bytes(ask):
    cases = []
    for dtype in DTYPES:
        cases += packing(FEW, (5,), dtype) + packing(FEW, (), dtype, dropped=True, spare=2)
        cases += padding(FEW, (5,), dtype) + padding(FEW, (), dtype, left=True, length=4)
    check(ask, cases)


# Of all row sizes mod 16, of rows shorter than a lane's vector and longer than 8 of them a lane; sizes in bytes.
@pytest.mark.parametrize("row", [1, 2, 3, 4, 7, 8, 12, 16, 24, 31, 33, 48, 88, 176, 257, 512, 513, 4104, 4112, 9001])
def test_rows_from_one_byte_to_several_stretches(ask, row):
    check(ask, packing(FEW, (row,), torch.uint8, fill=200) + padding(FEW, (row,), torch.uint8, left=True, fill=200))


@pytest.mark.parametrize("shift", [1, 2, 4, 8])
def test_rows_that_begin_anywhere_are_read_in_vectors_that_fit(ask, shift):
    dtype = {1: torch.uint8, 2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[shift]
    check(ask, packing(FEW, (48,), dtype, shift=shift) + padding(FEW, (48,), dtype, shift=shift))
    # Elements that take several vectors: their bytes are not all alike.
    for wide in (torch.float64, torch.complex128):
        check(ask, packing(FEW, (3,), wide, shift=shift, fill=2.5) + padding(FEW, (3,), wide, shift=shift))


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [1], [1, 1, 0]])
def test_nothing_and_single_tokens(ask, lengths):
    for row in [(), (0,), (2, 4)]:
        check(ask, [*packing(lengths, row, torch.int32, spare=2), *packing(lengths, row, torch.int32, True),
                    *padding(lengths, row, torch.int32, spare=1), *padding(lengths, row, torch.int32, True, length=3),
                    *padding(lengths, row, torch.int32, length=0)])  # fmt: skip


def test_random_ragged_batches(ask):
    cases = []
    for _ in range(20):
        lengths = torch.randint(0, 40, (int(torch.randint(1, 12, ())),)).tolist()
        row = (int(torch.randint(0, 30, ())), int(torch.randint(1, 3, ())))
        dtype, both = DTYPES[int(torch.randint(len(DTYPES), ()))], bool(torch.rand(()) < 0.5)
        spare = int(torch.randint(0, 9, ()))
        cases += packing(lengths, row, dtype, both, spare)
        cases += padding(lengths, row, dtype, both, int(torch.randint(0, 45, ())), spare)
    check(ask, cases)


def test_offsets_of_64_bits_are_refused(ask):
    x, order, cu = ragged(FEW, (2,), torch.float32)
    calls = [
        Call("pack", [x, order, cu.long(), 4, False]),
        Call("pack", [x, order.long(), cu, 4, False]),
        Call("unpack", [x[0], order, cu.long(), element(0, torch.float32), False]),
        Call("pad", [x[0], cu.long(), 4, False, element(0, torch.float32)]),
        Call("unpad", [x, cu.long(), False, 4]),
    ]
    for call, got in zip(calls, ask(calls), strict=True):
        assert isinstance(got, Refused) and "expected int32" in str(got), call.operator
