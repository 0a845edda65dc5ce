"""DataStream: what an epoch is, what resuming means, and what happens to items that cannot be read."""

from __future__ import annotations

import itertools
import json
import logging
import re
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lavit.data import DataStream, ImageError, ImageFolder


class Items:
    """Item i is the tensor [i, i]; the ones in `bad` cannot be read."""

    def __init__(self, count, bad=()):
        self.count, self.bad, self.reads = count, set(bad), []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads.append(index)
        if index in self.bad:
            raise ImageError(f"item {index}: is broken")
        return torch.tensor([index, index])


def take(stream, batches):
    return [next(stream) for _ in range(batches)]


def indices(batches):
    return [i for b in batches for i in b["index"].tolist()]


def same(a, b):
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True)
    )


sizes = st.integers(1, 23)


@settings(max_examples=60, deadline=None)
@given(count=sizes, batch=st.integers(1, 9), world=st.integers(1, 4), seed=st.integers(-5, 5), shuffle=st.booleans())
def test_every_epoch_of_all_processes_together_is_a_permutation(count, batch, world, seed, shuffle):
    streams = [
        DataStream(torch.arange(count), batch, seed=seed, shuffle=shuffle, rank=rank, world_size=world)
        for rank in range(world)
    ]
    batches = [take(s, -(-3 * count // (batch * world)) + 1) for s in streams]
    assert all(len(b["index"]) == batch for bs in batches for b in bs)
    # The processes take turns: item number j of process r is number r + j * world of the whole row.
    row = [i for turn in zip(*map(indices, batches), strict=True) for i in turn]
    epochs = [row[e * count : (e + 1) * count] for e in range(3)]
    assert all(sorted(e) == list(range(count)) for e in epochs)
    if not shuffle:
        assert all(e == list(range(count)) for e in epochs)


def test_order_depends_on_seed_and_epoch_only():
    def order(seed, epoch):
        stream = DataStream(torch.arange(50), 50, seed=seed)
        return tuple(indices(take(stream, epoch + 1)[-1:]))

    orders = {order(s, e) for s, e in itertools.product(range(3), range(3))}
    assert len(orders) == 9
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert order(1, 1) in orders
    assert torch.equal(before, torch.get_rng_state())  # the generators of the training are left alone


@settings(max_examples=60, deadline=None)
@given(
    count=sizes,
    batch=st.integers(1, 7),
    world=st.integers(1, 3),
    before=st.integers(0, 7),
    workers=st.sampled_from([0, 2]),
    data=st.data(),
)
def test_resumed_stream_equals_the_uninterrupted_one(count, batch, world, before, workers, data):
    bad = data.draw(st.sets(st.integers(0, count - 1), max_size=count // 2))
    rank = data.draw(st.integers(0, world - 1))

    def stream(workers=0):
        return DataStream(Items(count, bad), batch, seed=3, rank=rank, world_size=world, workers=workers)

    with stream() as whole, stream(workers) as first, stream(workers) as second:
        expected = take(whole, before + 5)
        assert same(take(first, before), expected[:before])
        state = json.loads(json.dumps(first.state_dict()))  # survives any format
        take(second, 2)  # what it had read ahead must not come out after loading
        second.load_state_dict(state)
        assert same(take(second, 5), expected[before:])
        assert second.skipped == whole.skipped
        assert second.epoch == whole.epoch


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_bad_items_are_replaced_named_once_and_listed(workers, caplog):
    items = Items(10, bad={2, 7})
    with caplog.at_level(logging.WARNING, "lavit.data"), DataStream(items, 4, seed=1, workers=workers) as stream:
        batches = take(stream, 10)
    assert all(len(b["index"]) == 4 for b in batches)
    assert {2, 7}.isdisjoint(indices(batches))
    assert sorted((s.index, s.name, s.reason) for s in stream.skipped) == [
        (2, "item 2", "is broken"),
        (7, "item 7", "is broken"),
    ]
    assert len(caplog.records) == 2 and all("skipped item" in r.getMessage() for r in caplog.records)
    if not workers:
        assert items.reads.count(2) == items.reads.count(7) == 1  # a broken file is not opened every epoch


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_only_bad_items_is_an_error_not_a_loop(workers, world):
    with DataStream(Items(5, bad=range(5)), 2, workers=workers, world_size=world) as stream:
        with pytest.raises(ImageError, match=r"no item can be read: 5 of 5 failed.*is broken"):
            next(stream)


def test_process_that_only_ever_meets_bad_items_is_an_error():
    # Without shuffling process 1 of 2 sees the odd items alone.
    with pytest.raises(ImageError, match="2 of 4 failed"):
        next(DataStream(Items(4, bad={1, 3}), 1, shuffle=False, rank=1, world_size=2))


def test_one_good_item_is_enough():
    assert indices(take(DataStream(Items(20, bad=range(1, 20)), 3), 2)) == [0] * 6


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(1, 7), st.integers(1, 3), st.integers(1, 2), st.sampled_from([0, 2]))
def test_finite_stream_gives_every_item_once_an_epoch(count, batch, world, epochs, workers):
    seen, lengths = [], []
    for rank in range(world):
        options = {"rank": rank, "world_size": world, "epochs": epochs, "workers": workers}
        with DataStream(Items(count), batch, **options) as stream:
            batches = list(stream)
            assert list(stream) == []
        seen += indices(batches)
        lengths += [len(b["index"]) for b in batches[:-1]]
    assert sorted(seen) == sorted(list(range(count)) * epochs)
    assert all(n == batch for n in lengths)
    rows = [DataStream(torch.arange(count), batch, rank=r, world_size=world, epochs=epochs) for r in range(world)]
    assert [i for stream in rows for i in indices(stream)] == seen  # rows of an array end as single items do


def test_the_order_of_the_items_stays_what_it_was():
    stream = DataStream(torch.arange(12), 8, seed=3, rank=1, world_size=2)
    assert indices(take(stream, 2)) == [9, 2, 1, 5, 0, 7, 11, 3, 9, 6, 2, 0, 11, 7, 3, 2]


@pytest.mark.parametrize("kind", ["array", "memmap", "tensor", "bfloat16"])
def test_rows_of_arrays_come_in_their_type(kind, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "rows.npy", array)
    source = {
        "array": array,
        "memmap": np.load(tmp_path / "rows.npy", mmap_mode="r"),
        "tensor": torch.from_numpy(array),
        "bfloat16": torch.from_numpy(array).bfloat16(),
    }[kind]
    batch = next(DataStream(source, 5, key="features"))
    assert batch.keys() == {"features", "index"}
    expected = torch.from_numpy(array)[batch["index"]]
    assert batch["features"].dtype == (torch.bfloat16 if kind == "bfloat16" else torch.uint8)
    assert torch.equal(batch["features"], expected.to(batch["features"].dtype))


def test_transform_sees_rows_of_an_array_and_single_items_of_a_folder(tmp_path):
    for i in range(4):
        Image.new("RGB", (3, 2), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    counts = []

    def transform(items):
        counts.append(len(items))
        return torch.stack([torch.from_numpy(np.array(i)) for i in items])

    with DataStream(ImageFolder(tmp_path), 3, transform=transform, workers=2) as stream:
        batch = next(stream)
        assert batch["images"].shape == (3, 2, 3, 3)
        assert batch["images"][:, 0, 0, 0].tolist() == batch["index"].tolist()
        next(stream)
        assert [s.name for s in stream.skipped] == [str(tmp_path / "3.png")]
        assert stream.skipped[0].reason == "not an image of a known format"
    assert set(counts) == {1}
    rows = next(DataStream(np.ones((4, 2)), 3, transform=lambda r: r * 2))
    assert torch.equal(rows["images"], torch.full((3, 2), 2.0, dtype=torch.float64))


def test_order_does_not_depend_on_how_long_an_item_takes():
    class Slow(Items):
        def __getitem__(self, index):
            time.sleep(0.002 * (index % 3))
            return super().__getitem__(index)

    with DataStream(Slow(12), 4, workers=4) as slow:
        assert same(take(slow, 5), take(DataStream(Items(12), 4), 5))


def test_error_of_the_dataset_is_raised_and_nothing_is_lost():
    class Flaky(Items):
        broken = True

        def __getitem__(self, index):
            if index == 4 and self.broken:
                raise RuntimeError("a bug, not a broken file")
            return super().__getitem__(index)

    for workers in (0, 2):
        items = Flaky(6)
        with DataStream(items, 3, shuffle=False, workers=workers) as stream:
            next(stream)
            with pytest.raises(RuntimeError, match="a bug"):
                next(stream)
            items.broken = False
            assert indices(take(stream, 1)) == [3, 4, 5]


def test_close_ends_the_threads():
    stream = DataStream(Items(5), 2, workers=2)
    next(stream)
    assert any(t.name.startswith("lavit-data") for t in threading.enumerate())
    stream.close()
    assert not any(t.name.startswith("lavit-data") for t in threading.enumerate())
    assert len(next(stream)["index"]) == 2
    stream.close()


def test_place_in_another_row_of_items_is_refused(tmp_path):
    state = DataStream(torch.arange(5), 2, seed=1).state_dict()
    for options in ({"seed": 2}, {"shuffle": False, "seed": 1}, {"seed": 1, "world_size": 2}):
        with pytest.raises(ValueError, match="state: was saved with"):
            DataStream(torch.arange(5), 2, **options).load_state_dict(state)
    with pytest.raises(ValueError, match="items = 5, this stream has 6"):
        DataStream(torch.arange(6), 2, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="expected the keys"):
        DataStream(torch.arange(5), 2, seed=1).load_state_dict({"place": 0})
    DataStream(torch.arange(5), 3, seed=1).load_state_dict(state)  # another batch size: the items go on in order

    Image.new("L", (1, 1)).save(tmp_path / "a.png")
    state = DataStream(ImageFolder(tmp_path), 1).state_dict()
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    with pytest.raises(ValueError, match="fingerprint"):
        DataStream(ImageFolder(tmp_path), 1).load_state_dict(state)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, "rank: expected 0 <= rank"),
        ({"epochs": 0}, "epochs"),
        ({"workers": -1}, "workers"),
        ({"key": "index"}, "key"),
        ({"dataset": torch.empty(0, 3)}, "dataset: expected at least one"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DataStream(**{"dataset": torch.arange(3), "batch_size": 1, **options})


@pytest.mark.parametrize("name", ["seed", "batch_size", "world_size", "workers", "epochs"])
@pytest.mark.parametrize("value", [1.5, 2.0, "2"])
def test_a_number_that_is_not_whole_is_refused_not_cut(name, value):
    with pytest.raises(TypeError, match=re.escape(f"{name}: expected a whole number, got {value!r}")):
        DataStream(**{"dataset": torch.arange(3), "batch_size": 1, name: value})


def test_a_whole_seed_of_any_type_is_the_same_order():
    one, other = (next(DataStream(torch.arange(50), 50, seed=seed)) for seed in (3, np.int64(3)))
    assert torch.equal(one["index"], other["index"])


def test_wrong_items_are_named():
    class Uneven(Items):
        def __getitem__(self, index):
            return torch.zeros(index + 1)

    with pytest.raises(ValueError, match=r"item 1: expected shape \(1,\) as before, got \(2,\)"):
        next(DataStream(Uneven(3), 2, shuffle=False))
    with pytest.raises(TypeError, match="transform: needed to make a tensor of item 0, a Image"):
        next(DataStream([Image.new("L", (1, 1))], 1))
    with pytest.raises(ValueError, match="transform: expected a tensor with 2 rows"):
        next(DataStream(torch.arange(3), 2, transform=lambda rows: rows[:1]))
