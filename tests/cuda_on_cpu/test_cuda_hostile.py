"""Whatever offsets, orders, kinds and lengths hold, a kernel touches nothing outside its tensors, without LAVIT_DEBUG.

Both builds end at the first access outside. No result is promised, so threads may race for it; what is written comes
from the tensors themselves.
"""

from __future__ import annotations

import pytest
import torch
from emulator import Call, Host, Refused, Shifted

LEAST, MOST = -(2**31), 2**31 - 1
OFFSETS = [
    [0, 3, 6], [0, 3, 900], [-4, 2, 1], [5, 3, 2], [0, -7, MOST], [MOST, LEAST, MOST], [LEAST, MOST, LEAST], [1, 3, 6],
    [LEAST] * 3, [MOST] * 3, [-1, -1, -1], [0, 0, MOST], [0, MOST, MOST], [6, 6, 0], [2, 2, 8], [-3, 3, 9],
    [0, 4, 8], [MOST, 0, 6], [0, MOST, 0],
]  # fmt: skip
ORDERS = [
    [[0, 99, -5], [2, 1, 0]], [[0, 1, 2], [0, 0, 0]], [[3, 3, 3], [-1, -1, -1]], [[LEAST, MOST, 1], [MOST, 2, LEAST]],
    [[0, 1, 2], [3, 3, 3]],
]  # fmt: skip
POISON = 0xA5


def ints(x) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.int32)


def drawn_offsets(n: int) -> list[torch.Tensor]:
    special = torch.tensor([LEAST, -7, -1, 0, 1, 2, 3, 6, 7, 900, MOST])
    return [special[torch.randint(len(special), (3,))].int() for _ in range(n)]


def all_offsets() -> list[torch.Tensor]:
    return [ints(cu) for cu in OFFSETS] + drawn_offsets(60)


@pytest.mark.parametrize("row, shift", [(16, 0), (5, 0), (12, 4)])
@pytest.mark.parametrize("dropped", [False, True])
def test_pack_and_unpack(ask, row, shift, dropped):
    x = torch.full((2, 3, row), 7, dtype=torch.uint8)
    fill = Host(torch.tensor([9], dtype=torch.uint8))
    calls = []
    for number, cu in enumerate(all_offsets()):
        order = ints(ORDERS[number % len(ORDERS)])
        calls += [Call("pack", [Shifted(x, shift), order, cu, 8, dropped], races=False),
                  Call("unpack", [Shifted(x[0], shift), order, cu, fill, dropped], races=False)]  # fmt: skip
    for call, (got,) in zip(calls, ask(calls), strict=True):
        allowed = (0, 7) if call.operator == "pack" else (7, 9, POISON)
        assert torch.isin(got, torch.tensor(allowed, dtype=torch.uint8)).all(), call


@pytest.mark.parametrize("row, shift", [(16, 0), (5, 0), (12, 4)])
@pytest.mark.parametrize("left", [False, True])
def test_pad_and_unpad(ask, row, shift, left):
    rows, padded = torch.full((4, row), 7, dtype=torch.uint8), torch.full((2, 5, row), 7, dtype=torch.uint8)
    fill = Host(torch.tensor([9], dtype=torch.uint8))
    calls = []
    for cu in all_offsets():
        calls.append(Call("pad", [Shifted(rows, shift), cu, 5, left, fill]))
        calls.append(Call("unpad", [Shifted(padded, shift), cu, left, 8]))
    for call, got in zip(calls, ask(calls), strict=True):
        if call.operator == "pad":
            assert ((got[0] == 7) | (got[0] == 9)).all()
            assert ((got[2] >= 0) & (got[2] < 5)).all() and (got[2][~got[1]] == 0).all()
        else:
            assert ((got[0] == 7) | (got[0] == 0)).all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_assemble_sequences(ask, dtype):
    """Kinds that are none, more segments of a kind than there are pieces, and offsets of every sort."""
    special = torch.tensor([LEAST, -7, -1, 0, 1, 2, 3, 5, 6, 7, 900, MOST])
    calls = []
    for n in range(120):
        segments = int(torch.randint(0, 9, ()))
        texts, images, samples = torch.randint(1, 6, (3,)).tolist()

        def garbage(n: int) -> torch.Tensor:
            return special[torch.randint(len(special), (n,))].int()

        kinds = torch.randint(-1 if n % 2 else 0, 5 if n % 2 else 3, (segments,), dtype=dtype)
        loss = None if n % 3 else torch.randint(-9, 99, (segments,), dtype=dtype)
        total = [0, 5, 60, 700][n % 4]
        calls.append(
            Call("assemble_sequences",
                 [torch.randint(50, (7,), dtype=dtype), garbage(texts), torch.randint(50, (6,), dtype=dtype),
                  garbage(images), kinds, garbage(samples), loss, 8, 900, 901, 100, 902, 903, total],
                 races=False))  # fmt: skip
    for call, got in zip(calls, ask(calls), strict=True):
        assert not isinstance(got, Refused)
        ids, labels, positions, ends, feature_rows = got
        total = call.arguments[-1]
        known = ((ids >= 0) & (ids < 50)) | ((ids >= 100) & (ids < 150)) | ((ids >= 900) & (ids <= 902))
        assert known.all() and ((labels == ids) | (labels == 903)).all()
        assert ((positions >= 0) & (positions < max(total, 1))).all()
        assert ((ends >= 0) & (ends <= total)).all(), ends
        assert ((feature_rows >= -1) & (feature_rows < total)).all()
