"""Drawing ragged layouts for the tests of partition, pack and pad, and their definition by Python loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from lavit.kernels.extension import cpp_unusable

IMPLEMENTATIONS = [
    "reference",
    pytest.param("cpp", marks=pytest.mark.skipif(cpp_unusable("cpu") is not None, reason=str(cpp_unusable("cpu")))),
]

# Every dtype whose elements torch can address and whose rows it can index, and at least one of every size.
DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.uint16,
    torch.int16,
    torch.uint32,
    torch.int32,
    torch.uint64,
    torch.int64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex32,
    torch.complex64,
    torch.complex128,
]
RAW = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}

ROW_SHAPES = [(), (1,), (3,), (2, 5), (33,), (0,)]


@st.composite
def masks(draw) -> Tensor:
    """(B, N) bool, the empty batch, no patches, images with all and with none kept included."""
    batch, patches = draw(st.integers(0, 5)), draw(st.integers(0, 19))
    rows = [
        draw(st.one_of(st.just([True] * patches), st.just([False] * patches), st.lists(st.booleans(), min_size=patches,
                                                                                       max_size=patches)))
        for _ in range(batch)
    ]
    return torch.tensor(rows, dtype=torch.bool).reshape(batch, patches)


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32)


def values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Values that tell rows apart in every dtype."""
    numbers = torch.randint(0, 120, shape)
    return (numbers % 2 == 0) if dtype == torch.bool else numbers.to(torch.float32).to(dtype)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(-1).view(torch.uint8)


def raw(x: Tensor) -> Tensor:
    """The same bytes in a dtype that torch can assign by index and join; not every one of DTYPES is."""
    return x.view(RAW[x.element_size()])


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, in shape and dtype; also for dtypes without comparison."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.numel() == 0 or torch.equal(bits(a), bits(b))
