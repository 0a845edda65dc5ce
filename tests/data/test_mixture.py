"""Sources mixed by weight and packed by tokens: shares, epochs, rows within the budget, and the place in the stream."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavit.data.mixture import Mixture, PackedRow, PackedStream, Sample
from lavit.kernels import Loss, Segment, assemble_sequences
from lavit.kernels.types import Ragged

TEXT, CODES, FEATURES = Segment


class Captions:
    """Sample i: [image i, text of i + 1 ids]; or text alone."""

    def __init__(self, count: int, kind: Segment | None = FEATURES, fingerprint: str = "captions") -> None:
        self.count, self.kind, self.fingerprint = count, kind, fingerprint

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        text = [100 + index] * (index + 1)
        return Sample((TEXT,), (text,)) if self.kind is None else Sample((self.kind, TEXT), (text,), (index,))


def two_sources(**options) -> Mixture:
    sources = {"text": Captions(5, None), "captions": Captions(7)}
    return Mixture(sources, {"text": 2, "captions": 1}, **options)


def of_image(number: int) -> int:
    return 3 + number % 4


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=4).filter(lambda w: sum(w) > 0.01), st.integers(1, 200))
def test_every_source_has_its_share_of_any_beginning(weights, n):
    names = [f"s{i}" for i in range(len(weights))]
    mixture = Mixture({k: Captions(3) for k in names}, dict(zip(names, weights, strict=True)))
    counts = Counter(mixture.names[which] for which, _ in islice(mixture, n))
    for name, weight in zip(names, weights, strict=True):
        assert abs(counts[name] - n * weight / sum(weights)) < len(weights)
        assert weight > 0 or counts[name] == 0


def test_a_source_of_weight_0_changes_nothing_of_a_run_or_its_state():
    sources, weights = {"captions": Captions(7), "text": Captions(5, None)}, {"captions": 1, "text": 2}
    old = Mixture(sources, weights, seed=3)
    new = Mixture({"edit": Captions(0), **sources}, {"edit": 0, **weights}, seed=3)
    list(islice(old, 11))
    new.load_state_dict(old.state_dict())
    assert list(islice(new, 20)) == list(islice(old, 20))


def test_epochs_are_different_permutations_and_processes_share_them():
    def numbers(rank, world, n):
        mixture = Mixture({"captions": Captions(7)}, {"captions": 1}, seed=3, rank=rank, world_size=world)
        return [sample.images[0] for _, sample in islice(mixture, n)]

    alone = numbers(0, 1, 21)
    epochs = [alone[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and len({tuple(e) for e in epochs}) == 3
    parts = [numbers(rank, 3, 7) for rank in range(3)]
    assert [parts[i % 3][i // 3] for i in range(21)] == alone


def test_the_order_of_the_samples_stays_what_it_was():
    drawn = [(which, len(sample.texts[0])) for which, sample in islice(two_sources(seed=5, rank=1, world_size=2), 9)]
    assert drawn == [(0, 1), (1, 5), (0, 2), (0, 5), (1, 7), (0, 4), (0, 2), (1, 4), (0, 3)]


def test_rows_hold_every_sample_once_within_the_budget():
    stream = PackedStream(two_sources(), 24, of_image, window=30)
    rows = [next(stream)]
    while stream._ready:
        rows.append(next(stream))
    expected = Counter(repr(sample) for _, sample in islice(two_sources(), 30))
    found = Counter()
    for row in rows:
        assert row.tokens <= 24
        texts, images = iter(row.text.unbind()), iter(row.images.tolist())
        for kinds in row.segments.unbind():
            segments = tuple(Segment(k) for k in kinds.tolist())
            image = tuple(next(images) for k in segments if k != TEXT)
            found[repr(Sample(segments, (next(texts).tolist(),), image))] += 1
        assert row.sources.shape[0] == row.segments.batch_size
    assert found == expected
    assert stream.fill_rate == sum(r.tokens for r in rows) / (24 * len(rows)) and stream.fill_rate > 0.85


def test_a_row_is_what_assembling_wants_and_has_the_tokens_it_says():
    row = next(PackedStream(two_sources(), 40, of_image, window=20))
    images = [torch.arange(of_image(i)) for i in row.images.tolist()]
    codes = Ragged.from_list(images) if images else Ragged(torch.empty(0).long(), torch.zeros(1).int(), 0)
    out = assemble_sequences(row.text, codes, row.segments, loss=row.loss)
    assert out.input_ids.shape == (row.tokens,) and int(out.cu_seqlens[-1]) == row.tokens
    assert int((out.feature_rows >= 0).sum()) == codes.values.shape[0]


@pytest.mark.parametrize("served", [0, 1, 3, 8, 21])
def test_a_resumed_stream_goes_on_with_the_same_rows(served):
    def same(a: PackedRow, b: PackedRow) -> bool:
        pairs = [(x.values, y.values) for x, y in ((a.text, b.text), (a.segments, b.segments))]
        return all(torch.equal(x, y) for x, y in [*pairs, (a.images, b.images), (a.loss, b.loss)])

    stream = PackedStream(two_sources(seed=5), 24, of_image, window=16)
    for _ in range(served):
        next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    other = PackedStream(two_sources(seed=5), 24, of_image, window=16)
    next(other)
    other.load_state_dict(state)
    assert other.fill_rate == stream.fill_rate
    assert all(same(next(stream), next(other)) for _ in range(12))


def test_the_state_of_another_stream_is_refused_by_name():
    state = PackedStream(two_sources(), 24, of_image, window=16).state_dict()
    with pytest.raises(ValueError, match="budget: the state is of 24, this stream has 25"):
        PackedStream(two_sources(), 25, of_image, window=16).load_state_dict(state)
    with pytest.raises(ValueError, match="seed: the state is of 0, this mixture has 1"):
        PackedStream(two_sources(seed=1), 24, of_image, window=16).load_state_dict(state)
    other = Mixture({"text": Captions(5, None, "others"), "captions": Captions(7)}, {"text": 2, "captions": 1})
    with pytest.raises(ValueError, match="fingerprints: the state is of"):
        PackedStream(other, 24, of_image, window=16).load_state_dict(state)


def test_samples_beyond_the_budget_are_left_out_and_counted():
    mixture = Mixture({"captions": Captions(7, CODES)}, {"captions": 1})
    stream = PackedStream(mixture, 10, of_image, window=14)
    rows = [next(stream)]
    while stream._ready:
        rows.append(next(stream))
    short = [i for i in range(7) if i + 1 + of_image(i) + 2 <= 10]
    assert sorted({i for row in rows for i in row.images.tolist()}) == short
    assert stream.skipped == 14 - 2 * len(short)
    with pytest.raises(ValueError, match="budget: 5 tokens hold none of 14 samples, the shortest has 6"):
        next(PackedStream(mixture, 5, of_image, window=14))


def test_loss_flags_are_the_samples_or_the_default():
    explicit = Sample((FEATURES, TEXT), ([1],), (0,), (Loss.CONTENT, Loss.NONE))
    row = PackedRow.of([explicit, Sample((TEXT, CODES), ([2],), (1,))], 0, [0, 0])
    assert row.loss.tolist() == [Loss.CONTENT, Loss.NONE, Loss.CONTENT, Loss.ALL]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="segments: expected 1 texts and 0 images, got 0 and 1"):
        Sample((CODES,), ([1],))
    with pytest.raises(ValueError, match="loss: expected 1 entries, one a segment, got 2"):
        Sample((TEXT,), ([1],), (), (Loss.ALL, Loss.ALL))
    with pytest.raises(ValueError, match="weights: expected one for each of a; got b"):
        Mixture({"a": Captions(1)}, {"b": 1})
    with pytest.raises(ValueError, match="weights: expected a's to be at least 0, got -1"):
        Mixture({"a": Captions(1)}, {"a": -1})
    with pytest.raises(ValueError, match="sources: expected at least one sample in a, got none"):
        Mixture({"a": Captions(0)}, {"a": 1})
    with pytest.raises(ValueError, match="weights: expected one above 0, got none"):
        Mixture({"a": Captions(1)}, {"a": 0})
    with pytest.raises(ValueError, match="rank: expected 0 <= rank < world_size = 2, got 2"):
        Mixture({"a": Captions(1)}, {"a": 1}, rank=2, world_size=2)
    with pytest.raises(TypeError, match=r"seed: expected a whole number, got 1\.5"):
        Mixture({"a": Captions(1)}, {"a": 1}, seed=1.5)
    with pytest.raises(ValueError, match="window: expected at least 1 sample, got 0"):
        PackedStream(two_sources(), 10, of_image, window=0)
    with pytest.raises(ValueError, match="budget: expected 1 to"):
        PackedStream(two_sources(), 0, of_image)
