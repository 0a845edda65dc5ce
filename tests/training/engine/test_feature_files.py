"""Features of files: a row belongs to a file, whatever data set it is in, and what is there is not computed again."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import on_two_processes

from lavit.data import DataStream, ImageError, ImageFolder
from lavit.data.image_folder import ImageFiles
from lavit.tokenizer import LaVITImageProcessor
from lavit.training.engine import feature_files
from lavit.training.engine.feature_files import FeatureFiles, FeatureRows

PROCESSOR = LaVITImageProcessor(size=4)


class Encoder:
    """Counts its images; patch features of 2x2 pixels."""

    def __init__(self, scale=1.0):
        self.weight, self.images = torch.tensor([scale]), 0

    def __call__(self, images):
        self.images += len(images)
        return torch.nn.functional.unfold(images, 2, stride=2).transpose(1, 2) * self.weight

    def rows(self, files, root, *, write=True, roots=(), dtype=torch.float32, any_precision=False, **more):
        kinds = {"dtype": dtype, "any_precision": any_precision}
        store = FeatureFiles([*roots, root], [("w", self.weight)], write_to=root if write else None, **kinds)
        return store.of(files, self, transform=PROCESSOR, **{"batch_size": 3, **more})

    def wanted(self, paths):
        return Encoder(self.weight.item())(PROCESSOR([Image.open(path) for path in paths]))


def pictures(folder: Path, count=7) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (5, 5, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_rows_are_the_encoders_in_the_order_of_the_files(tmp_path):
    files = ImageFolder(pictures(tmp_path / "a"))
    encoder = Encoder(2.0)
    found = encoder.rows(files, tmp_path / "c")
    assert torch.equal(found.values[torch.arange(7)], encoder.wanted(files.paths)) and found.computed == 7
    again = Encoder(2.0)
    turned = ImageFiles(files.root, files.paths[::-1][:5])
    found = again.rows(turned, tmp_path / "c")
    assert again.images == 0 and found.computed == 0
    assert torch.equal(found.values[torch.arange(5)], encoder.wanted(turned.paths))


def test_missing_rows_alone_are_computed_and_added(tmp_path):
    folder = pictures(tmp_path / "a")
    few = ImageFiles(folder, [folder / f"{n}.png" for n in (1, 3, 4)])
    Encoder().rows(few, tmp_path / "c")
    rest = Encoder()
    assert rest.rows(ImageFolder(folder), tmp_path / "c").computed == rest.images == 4
    assert Encoder().rows(ImageFolder(folder), tmp_path / "c").computed == 0


@pytest.mark.parametrize("how", ["moved", "linked", "copied"])
def test_files_of_the_same_contents_share_rows_under_any_name(tmp_path, how):
    folder = pictures(tmp_path / "a")
    Encoder().rows(ImageFolder(folder), tmp_path / "c")
    other = tmp_path / "other" / "images"
    if how == "moved":
        other.parent.mkdir()
        os.replace(folder, other)
    else:
        shutil.copytree(folder, other, copy_function=os.link if how == "linked" else shutil.copyfile)
    encoder = Encoder()
    found = encoder.rows(ImageFolder(other), tmp_path / "c")
    assert encoder.images == 0
    assert torch.equal(found.values[torch.arange(7)], encoder.wanted(ImageFolder(other).paths))


def test_new_names_are_remembered_and_their_files_not_read_again(tmp_path, monkeypatch):
    folder = pictures(tmp_path / "a")
    Encoder().rows(ImageFolder(folder), tmp_path / "c")
    os.replace(folder, tmp_path / "b")
    Encoder().rows(ImageFolder(tmp_path / "b"), tmp_path / "c")
    monkeypatch.setattr(feature_files, "_digest", lambda path: pytest.fail(f"{path} was read"))
    assert Encoder().rows(ImageFolder(tmp_path / "b"), tmp_path / "c").computed == 0


def test_a_file_that_was_replaced_is_computed_anew(tmp_path):
    folder = pictures(tmp_path / "a")
    Encoder().rows(ImageFolder(folder), tmp_path / "c")
    before = os.stat(folder / "2.png")
    Image.new("RGB", (5, 5), "red").save(folder / "2.png")
    os.utime(folder / "2.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    encoder = Encoder()
    found = encoder.rows(ImageFolder(folder), tmp_path / "c")
    assert encoder.images == 1
    assert torch.equal(found.values[torch.arange(7)], encoder.wanted(ImageFolder(folder).paths))


@pytest.mark.parametrize("change", ["weights", "precision"])
def test_rows_of_other_weights_or_precision_are_not_taken(tmp_path, change):
    files = ImageFolder(pictures(tmp_path / "a"))
    Encoder().rows(files, tmp_path / "c")
    encoder = Encoder(3.0 if change == "weights" else 1.0)
    dtype = torch.bfloat16 if change == "precision" else torch.float32
    found = encoder.rows(files, tmp_path / "c", dtype=dtype)
    assert encoder.images == 7
    assert torch.equal(found.values[torch.arange(7)], encoder.wanted(files.paths).to(dtype))


def test_rows_of_any_precision_are_taken_the_most_exact_first(tmp_path):
    files, few = ImageFolder(pictures(tmp_path / "a")), [1, 3, 4]
    Encoder().rows(files, tmp_path / "c", dtype=torch.float16)
    Encoder().rows(ImageFiles(files.root, [files.paths[n] for n in few]), tmp_path / "d")
    encoder = Encoder()
    found = encoder.rows(files, tmp_path / "c", roots=[tmp_path / "d"], any_precision=True)
    exact = encoder.wanted(files.paths)
    rounded = exact.half().float()
    assert encoder.images == 0 and not torch.equal(exact, rounded)
    expected = torch.stack([(exact if n in few else rounded)[n] for n in range(7)])
    assert torch.equal(found.values[torch.arange(7)], expected) and torch.equal(found.values[0], expected[0])


@pytest.mark.parametrize("write", [True, False])
def test_new_rows_get_the_precision_that_is_there(tmp_path, write):
    files = ImageFolder(pictures(tmp_path / "a"))
    Encoder().rows(ImageFiles(files.root, files.paths[:3]), tmp_path / "c", dtype=torch.bfloat16)
    encoder = Encoder()
    found = encoder.rows(files, tmp_path / "c", write=write, any_precision=True)
    assert encoder.images == 4 and len(list((tmp_path / "c").iterdir())) == 1
    assert torch.equal(found.values[torch.arange(7)], encoder.wanted(files.paths).bfloat16().float())
    alone = Encoder().rows(files, tmp_path / "d", dtype=torch.float16, any_precision=True)  # where there are none
    assert torch.equal(alone.values[torch.arange(7)], encoder.wanted(files.paths).half().float())


def test_what_a_killed_build_has_left_is_deleted_when_it_is_nobodys(tmp_path):
    files = ImageFolder(pictures(tmp_path / "a"))
    Encoder().rows(files, tmp_path / "c")
    (piece,) = (tmp_path / "c").glob("*/*.npy")
    left = [piece.with_name("feed.npy"), piece.with_name(".feed.npy.beef.tmp")]
    fresh = [piece.with_name("cafe.npy"), piece.with_name(".cafe.npy.beef.tmp")]  # of one that is at work
    hour_ago = time.time() - feature_files.STALE - 60
    for path in [*left, *fresh]:
        path.write_bytes(b"rows")
    for path in [*left, piece, piece.with_suffix(".json")]:
        os.utime(path, (hour_ago, hour_ago))
    assert Encoder().rows(files, tmp_path / "d", roots=[tmp_path / "c"]).computed == 0
    assert all(path.exists() for path in left)  # of others' folders nothing is deleted
    assert Encoder().rows(files, tmp_path / "c").computed == 0
    assert not any(path.exists() for path in left) and all(path.exists() for path in fresh)


def test_an_interrupted_build_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_files, "PIECE_BYTES", 1)
    files = ImageFolder(pictures(tmp_path / "a", 60))
    encoder = Encoder()

    def failing(images):
        if encoder.images >= 40:
            raise KeyboardInterrupt
        return encoder(images)

    store = FeatureFiles([], [("w", encoder.weight)], write_to=tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        store.of(files, failing, transform=PROCESSOR, batch_size=8)
    rest = Encoder()
    found = rest.rows(files, tmp_path / "c")
    assert rest.images == 60 - 32  # pieces of 16 rows and more
    assert torch.equal(found.values[torch.arange(60)], rest.wanted(files.paths))


def test_a_piece_that_is_not_whole_counts_for_none(tmp_path, caplog):
    files = ImageFolder(pictures(tmp_path / "a"))
    Encoder().rows(files, tmp_path / "c")
    (piece,) = (tmp_path / "c").glob("*/*.npy")
    piece.write_bytes(piece.read_bytes()[:300])
    encoder = Encoder()
    found = encoder.rows(files, tmp_path / "c")
    assert encoder.images == 7 and "passing over the features" in caplog.text
    assert torch.equal(found.values[torch.arange(7)], encoder.wanted(files.paths))
    (piece.with_suffix(".json")).write_text("{")
    assert Encoder().rows(files, tmp_path / "c").computed == 0


def test_files_that_cannot_be_read_are_named_and_tried_again(tmp_path):
    folder = pictures(tmp_path / "a")
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(b"no image")
    for _ in range(2):
        found = Encoder().rows(ImageFolder(folder), tmp_path / "c")
        assert [(n, Path(name).name) for n, name, _ in found.skipped] == [(3, "3.png")]
        assert "not an image" in found.skipped[0][2] and found.numbers == [0, 1, 2, 4, 5, 6]
    assert torch.equal(found.values[torch.tensor([3])], Encoder().wanted([folder / "4.png"]))
    (folder / "3.png").write_bytes(whole)
    assert Encoder().rows(ImageFolder(folder), tmp_path / "c").skipped == []
    for path in folder.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ImageError, match="no item can be read: 7 failed, the first is .*0.png: not an image"):
        Encoder().rows(ImageFolder(folder), tmp_path / "d")


def test_another_folder_is_looked_through_and_left_as_it_is(tmp_path):
    folder = pictures(tmp_path / "a")
    few = ImageFiles(folder, [folder / f"{n}.png" for n in (1, 3, 4)])
    Encoder().rows(few, tmp_path / "first")
    before = sorted((tmp_path / "first").rglob("*"))
    encoder = Encoder()
    files = ImageFolder(folder)
    found = encoder.rows(files, tmp_path / "second", roots=[tmp_path / "first"])
    assert encoder.images == 4 and sorted((tmp_path / "first").rglob("*")) == before
    assert torch.equal(found.values[torch.arange(7)], encoder.wanted(files.paths))
    in_memory = Encoder()
    found = in_memory.rows(files, tmp_path / "first", write=False)
    assert in_memory.images == 4 and sorted((tmp_path / "first").rglob("*")) == before
    assert torch.equal(found.values[torch.arange(7)], encoder.wanted(files.paths))


def test_two_runs_that_build_at_once_do_not_disturb_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_files, "PIECE_BYTES", 1)
    files = ImageFolder(pictures(tmp_path / "a", 50))
    one, other = Encoder(), Encoder()

    def in_turns(images):
        if one.images == 24:  # the other begins and ends in the midst of this one
            found = other.rows(files, tmp_path / "c")
            assert torch.equal(found.values[torch.arange(50)], other.wanted(files.paths))
        return one(images)

    store = FeatureFiles([], [("w", one.weight)], write_to=tmp_path / "c")
    found = store.of(files, in_turns, transform=PROCESSOR, batch_size=8)
    assert other.images and torch.equal(found.values[torch.arange(50)], one.wanted(files.paths))
    assert Encoder().rows(files, tmp_path / "c").computed == 0


def test_find_tells_whether_all_are_there(tmp_path):
    files = ImageFolder(pictures(tmp_path / "a"))
    encoder = Encoder()
    store = FeatureFiles([tmp_path / "c"], [("w", encoder.weight)])
    assert store.find(files) is None
    encoder.rows(ImageFiles(files.root, files.paths[:6]), tmp_path / "c")
    assert store.find(files) is None
    encoder.rows(files, tmp_path / "c")
    found = store.find(files)
    assert found is not None and torch.equal(found[torch.arange(7)], encoder.wanted(files.paths))


def test_rows_of_several_pieces_read_as_those_of_one_tensor():
    whole = torch.randn(10, 2, 3)
    rows = FeatureRows([whole[6:], whole[:6]], [(1, i) for i in range(6)] + [(0, i) for i in range(4)])
    assert len(rows) == 10 and torch.equal(rows[3], whole[3])
    for index in ([7, 0, 7], torch.tensor([9, 2]), slice(4, 8), []):
        assert torch.equal(rows[index], whole[index])
    assert torch.equal(torch.cat(list(rows.split(4))), whole)
    streams = [DataStream(data, 4, key="features", seed=3) for data in (rows, whole)]
    for _ in range(6):
        one, other = (next(stream) for stream in streams)
        assert torch.equal(one["features"], other["features"]) and torch.equal(one["index"], other["index"])


def shared(rank: int, folder: str) -> None:
    files, encoder = ImageFolder(Path(folder) / "a"), Encoder()
    found = encoder.rows(files, Path(folder) / "c")
    assert [n for n, _, _ in found.skipped] == [3] and found.skipped[0][2]
    torch.save((encoder.images, found.values[torch.arange(6)]), f"{folder}/{rank}.pt")


def test_two_processes_share_the_work(tmp_path):
    folder = pictures(tmp_path / "a")
    (folder / "3.png").write_bytes(b"no image")
    on_two_processes(shared, tmp_path)
    (one, rows), (two, same) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert one + two == 6 and min(one, two) >= 2 and torch.equal(rows, same)
    assert torch.equal(rows, Encoder().wanted([folder / f"{n}.png" for n in (0, 1, 2, 4, 5, 6)]))
