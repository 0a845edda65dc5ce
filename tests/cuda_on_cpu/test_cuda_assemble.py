from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from emulator import Call, Refused, Sparse
from torch import Tensor

from lavit.kernels.assemble_sequences import reference
from lavit.kernels.partition.reference import offsets

TEXT, CODES, FEATURES = 0, 1, 2
CONSTANTS = (0b000_111_001, 32000, 32001, 32002, 5, -100)  # kind_loss, [IMG], [/IMG], first code, pad, ignore
RESULTS = ("input_ids", "labels", "position_ids", "cu_seqlens", "feature_rows")
TILE = 2048  # segments that a block looks at together


@dataclass
class Batch:
    """kinds and lengths: of the segments. samples: segments of each. spare: unused segments, pieces and tokens."""

    kinds: list[int]
    lengths: list[int]
    samples: list[int]
    loss: Tensor | None = None
    spare: int = 0
    dtype: torch.dtype = torch.int64

    def arguments(self, total: int) -> list:
        tensors: list[Tensor] = []
        for wanted in ((TEXT,), (CODES, FEATURES)):
            lengths = [n for kind, n in zip(self.kinds, self.lengths, strict=True) if kind in wanted]
            tokens = sum(lengths) + self.spare
            tensors += [torch.randint(0, 900, (tokens,), dtype=self.dtype), cu(lengths + [1] * self.spare)]
        segments = torch.tensor(self.kinds + [CODES] * self.spare, dtype=self.dtype)
        return [*tensors, segments, cu(self.samples), self.loss, *CONSTANTS, total]

    def rows(self) -> int:
        return sum(n + 2 * (kind != TEXT) for kind, n in zip(self.kinds, self.lengths, strict=True))


def cu(lengths: list[int]) -> Tensor:
    return offsets(torch.tensor(lengths, dtype=torch.int64))


def drawn(samples: int, tokens: int, dtype=torch.int64, spare=0, most_segments=5) -> Batch:
    """Random samples: of no segments, of texts alone, of images alone; pieces of no tokens."""
    counts = torch.randint(0, most_segments, (samples,)).tolist()
    kinds = torch.randint(0, 3, (sum(counts),)).tolist()
    lengths = (torch.randint(0, tokens + 1, (len(kinds),)) * (torch.rand(len(kinds)) < 0.8)).tolist()
    return Batch(kinds, lengths, counts, None, spare, dtype)


def check(ask, cases):
    """cases: (batch, total, multiprocessors)."""
    calls = [Call("assemble_sequences", b.arguments(total), processors=p) for b, total, p in cases]
    for call, got in zip(calls, ask(calls), strict=True):
        assert not isinstance(got, Refused), got
        for name, a, b in zip(RESULTS, got, reference.assemble_sequences(*call.arguments), strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b), f"{name} with {call.processors} multiprocessors"


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_random_batches_are_the_references(ask, dtype):
    cases = []
    for n in range(24):
        batch = drawn(int(torch.randint(0, 40, ())), int(torch.randint(1, 90, ())), dtype, spare=n % 3)
        if n % 2:
            batch.loss = torch.randint(0, 8, (len(batch.kinds) + batch.spare,), dtype=dtype)
        cases += [(batch, max(0, batch.rows() + more), 1 + n % 3) for more in (0, 700, -3)]
    check(ask, cases)


def test_nothing_and_single_tokens(ask):
    batches = [Batch([], [], []), Batch([], [], [0, 0]), Batch([TEXT], [0], [1]), Batch([CODES], [0], [0, 1, 0]),
               Batch([TEXT], [1], [1]), Batch([FEATURES], [1], [1]), Batch([], [], [0], spare=2)]  # fmt: skip
    check(ask, [(batch, total, 3) for batch in batches for total in (0, 1, batch.rows(), batch.rows() + 5)])


@pytest.mark.parametrize("length", [31, 32, 33, 255, 256, 257, 511, 512, 513])
def test_lengths_around_a_warp_and_a_block(ask, length):
    kinds = [FEATURES, TEXT, CODES, TEXT, FEATURES]
    batch = Batch(kinds, [length, length, 1, 0, length], [2, 3])
    check(ask, [(batch, batch.rows() + more, p) for more in (0, 2, -1 - length) for p in (1, 3, 132)])


@pytest.mark.parametrize("segments", [TILE - 1, TILE, TILE + 1, 2 * TILE, 2 * TILE + 5])
def test_segments_around_the_tiles_of_a_block(ask, segments):
    kinds = torch.randint(0, 3, (segments,)).tolist()
    lengths = torch.randint(0, 3, (segments,)).tolist()
    one_by_one = Batch(kinds, lengths, [1] * segments)
    in_one = Batch(kinds, lengths, [segments])
    loss = torch.randint(0, 8, (segments,))
    across = Batch(kinds, lengths, [3, segments - 4, 0, 1], loss)
    check(ask, [(b, b.rows() + more, 2) for b, more in [(one_by_one, 0), (in_one, 4), (across, -9)]])


def test_a_blocks_last_sample_begins_with_a_tile(ask):
    """4097 samples of one token are looked at in three tiles; the rows end in the first, the samples of a block do at
    the beginning of the next. Whether it looks there decides whether its last offset is written."""
    batch = Batch([TEXT] * 4097, [1] * 4097, [1] * 4097)
    check(ask, [(batch, total, 3) for total in (700, 4097, 1)])
    for n in (2 * TILE - 1, 2 * TILE, 2 * TILE + 1):
        many = Batch([TEXT] * n, [1] * n, [1] * n)
        check(ask, [(many, 700, 1)])


def test_images_of_the_later_tiles_find_their_rows(ask):
    """Rows and samples end long before the image tokens, so these alone keep a block looking."""
    n = TILE + 40
    batch = Batch([FEATURES] * n, [2] * n, [n])
    check(ask, [(batch, total, p) for total in (batch.rows(), 10, 0) for p in (1, 3)])
    # The first block's rows end in the first tile, its image tokens come in the second.
    texts_first = Batch([TEXT] * TILE + [FEATURES, CODES], [1] * TILE + [700, 9], [TILE + 2])
    check(ask, [(texts_first, total, p) for total in (texts_first.rows(), 2300, 5) for p in (1, 3)])


def test_rows_past_two_gigabytes(ask):
    """2^31 - 1 rows, of which the last block alone runs: a text of nearly all, then an image as features."""
    total, image = 2**31 - 1, 40
    tokens = total - image - 2
    codes = torch.arange(7, 7 + image, dtype=torch.int32)
    arguments = [Sparse((tokens,), torch.int32, {4 * (tokens - 1): (11).to_bytes(4, "little")}), cu_of(tokens), codes,
                 cu([image]), torch.tensor([TEXT, FEATURES], dtype=torch.int32), cu([1, 1]), None, *CONSTANTS, total]
    blocks = -(-total // 512)
    tail = 8 * (image + 3)  # the last token of the text, then the image
    reads = [(name, 8 * total - tail, tail) for name in (0, 1, 2)]
    ids, labels, positions = ask([Call("assemble_sequences", arguments, processors=blocks, reads=reads,
                                       blocks=[(blocks - 1, blocks - 1)])])[0]  # fmt: skip
    assert longs(ids) == [11, 32000, *(32002 + codes).tolist(), 32001]
    assert longs(labels) == [11] + [-100] * (image + 2)
    assert longs(positions) == [tokens - 1, *range(image + 2)]


def test_feature_rows_and_samples_near_the_largest_total(ask):
    total, image = 2**31 - 1, 40
    tokens = total - image - 2
    arguments = [Sparse((tokens,), torch.int64), cu_of(tokens), torch.arange(image), cu([image]),
                 torch.tensor([TEXT, FEATURES]), cu([1, 1]), None, *CONSTANTS, total]
    blocks = -(-total // 512)
    ends, rows = ask([Call("assemble_sequences", arguments, processors=blocks, blocks=[(0, image - 1)],
                           reads=[(3, 0, 12), (4, 0, 8 * image)])])[0]  # fmt: skip
    assert torch.frombuffer(bytearray(ends), dtype=torch.int32).tolist() == [0, tokens, total]
    assert longs(rows) == list(range(tokens + 1, tokens + 1 + image))


def cu_of(length: int) -> Tensor:
    return torch.tensor([0, length], dtype=torch.int32)


def longs(raw: bytes) -> list[int]:
    return torch.frombuffer(bytearray(raw), dtype=torch.int64).tolist()


def test_what_does_not_fit_is_refused(ask):
    batch = Batch([TEXT], [3], [1])
    wide = batch.arguments(3)
    wide[1] = wide[1].long()
    other = batch.arguments(3)
    other[0] = other[0].float()
    calls = [Call("assemble_sequences", a) for a in (batch.arguments(2**31), batch.arguments(-1), wide, other)]
    wanted = ["total: expected 0 to"] * 2 + ["cu_text: expected int32", "text: expected int64 or int32"]
    for got, message in zip(ask(calls), wanted, strict=True):
        assert isinstance(got, Refused) and message in str(got)
