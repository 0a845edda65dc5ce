"""Rows whose bytes and elements lie past 2^31, in tensors of which only what is touched takes memory."""

from __future__ import annotations

import pytest
import torch
from emulator import Call, Host, Sparse

BATCH, PATCHES = 3, 2**20
WIDE = 1000  # bytes: 3.1e9 in all
LANES = 32
LAST = BATCH - 1


def int32(*numbers: int) -> bytes:
    return torch.tensor(numbers, dtype=torch.int32).numpy().tobytes()


def pattern(row: int, n: int = WIDE) -> bytes:
    return bytes((row + k) % 251 for k in range(n))


def last_blocks(rows: int, lanes: int = LANES) -> list[tuple[int, int]]:
    last = rows * lanes // 256 - 1
    return [(last, last)]


OFFSETS = torch.tensor([0, PATCHES, 2 * PATCHES, 3 * PATCHES], dtype=torch.int32)
ROWS = BATCH * PATCHES
FILL = Host(torch.tensor([9], dtype=torch.uint8))
# The last block moves the last eight rows; it finds them at these patches of the last image.
PLACES = [5, PATCHES - 1, 0, 77, 1000, 2**19, 2**19 + 1, 4]
ORDER = Sparse((BATCH, PATCHES), torch.int32, {4 * (ROWS - 8): int32(*PLACES)})


def test_pack_reads_and_writes_there(ask):
    at = [LAST * PATCHES + p for p in PLACES]
    x = Sparse((BATCH, PATCHES, WIDE), torch.uint8, {WIDE * row: pattern(row) for row in at})
    [got] = ask([Call("pack", [x, ORDER, OFFSETS, ROWS, False], blocks=last_blocks(ROWS),
                      reads=[(0, WIDE * (ROWS - 8), WIDE * 8)])])[0]  # fmt: skip
    assert got == b"".join(map(pattern, at))


def test_unpack_reads_and_writes_there(ask):
    rows = Sparse((ROWS, WIDE), torch.uint8, {WIDE * (ROWS - 8 + k): pattern(k) for k in range(8)})
    reads = [(0, WIDE * (LAST * PATCHES + p), WIDE) for p in PLACES]
    got = ask([Call("unpack", [rows, ORDER, OFFSETS, FILL, False], blocks=last_blocks(ROWS), reads=reads)])[0]
    assert got == [pattern(k) for k in range(8)]


@pytest.mark.parametrize("left", [False, True])
def test_pad_and_unpad_read_and_write_there(ask, left):
    rows = Sparse((ROWS, WIDE), torch.uint8, {WIDE * (ROWS - 8 + k): pattern(k) for k in range(8)})
    tail = [(0, WIDE * (ROWS - 8), WIDE * 8), (1, ROWS - 8, 8), (2, 8 * (ROWS - 1), 8)]
    there = Sparse((BATCH, PATCHES, WIDE), torch.uint8, rows.pieces)
    padded, back = ask([
        Call("pad", [rows, OFFSETS, PATCHES, left, FILL], blocks=last_blocks(ROWS), reads=tail),
        Call("unpad", [there, OFFSETS, left, ROWS], blocks=last_blocks(ROWS), reads=tail[:1]),
    ])  # fmt: skip
    wanted = b"".join(map(pattern, range(8)))
    assert padded == [wanted, b"\1" * 8, (PATCHES - 1).to_bytes(8, "little")]
    assert back == [wanted]


def test_more_cells_than_2_to_the_32(ask):
    """Cells of one byte, one thread each: the number of the cell itself needs more than 32 bits."""
    images, length, rows = 5, 2**30, 256
    cu = torch.tensor([0] * images + [rows], dtype=torch.int32)
    cells = images * length
    values = torch.arange(rows).to(torch.uint8)
    reads = [(0, cells - rows, rows), (1, cells - rows, rows), (2, 8 * (cells - 1), 8)]
    call = Call("pad", [values, cu, length, True, FILL], blocks=last_blocks(cells, 1), reads=reads)
    assert ask([call])[0] == [bytes(range(256)), b"\1" * rows, (rows - 1).to_bytes(8, "little")]
    order = Sparse((images, length), torch.int32, {4 * (cells - rows): int32(*range(length - rows, length))})
    call = Call("unpack", [values, order, cu, FILL, True], blocks=last_blocks(cells, 1), reads=reads[:1])
    assert ask([call])[0] == [bytes(range(256))]


def test_rows_longer_than_the_grid(ask):
    """A row of bytes longer than 65535 blocks cover at once: the first comes again for the rest, and only for that."""
    covered = 65535 * 32 * 8
    length = covered + 301  # odd: the vectors are bytes
    x = Sparse((1, 2, length), torch.uint8, {length: b"abc", length + covered - 2: b"defghi", 2 * length - 3: b"xyz"})
    order, cu = torch.tensor([[1, 0]], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    reads = [(0, 0, 3), (0, covered, 4), (0, length - 3, 3)]
    call = Call("pack", [x, order, cu, 1, False], blocks=[(0, 1), (65534, 65534)], reads=[*reads, (0, covered - 2, 2)])
    assert ask([call])[0] == [b"abc", b"fghi", b"xyz", b"de"]
