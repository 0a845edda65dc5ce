"""ImageFolder: the same files in the same order everywhere; a folder that cannot serve says why."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from lavit.data import ImageError, ImageFolder


def put(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), colour).save(path)


def test_recursive_sorted_and_only_images(tmp_path):
    for name in ("b/2.PNG", "b/10.jpg", "a.png", "c/d/e.webp", ".hidden.png", ".cache/x.png"):
        put(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    folder = ImageFolder(tmp_path)
    assert [os.path.relpath(p, tmp_path) for p in folder.paths] == ["a.png", "b/10.jpg", "b/2.PNG", "c/d/e.webp"]
    assert len(folder) == 4
    assert folder[0].size == (2, 2) and folder.name(0) == str(tmp_path / "a.png")
    assert [p.name for p in ImageFolder(tmp_path, ["jpg"]).paths] == ["10.jpg"]


def test_fingerprint_follows_the_names(tmp_path):
    for name in ("one/a.png", "one/b.png", "two/b.png", "two/a.png"):
        put(tmp_path / name)
    before = ImageFolder(tmp_path / "one").fingerprint
    assert before == ImageFolder(tmp_path / "two").fingerprint
    (tmp_path / "one" / "b.png").rename(tmp_path / "one" / "c.png")
    assert before != ImageFolder(tmp_path / "one").fingerprint


def test_linked_folders_are_followed_once(tmp_path):
    put(tmp_path / "data" / "x" / "a.png")
    (tmp_path / "data" / "x" / "loop").symlink_to(tmp_path / "data")
    put(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "data" / "z").symlink_to(tmp_path / "elsewhere")
    assert [p.name for p in ImageFolder(tmp_path / "data").paths] == ["a.png", "b.png"]


def test_bad_file_raises_only_when_it_is_read(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nonsense")
    folder = ImageFolder(tmp_path)
    with pytest.raises(ImageError, match="b.png"):
        folder[1]


def test_missing_empty_and_wrong_roots_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ImageFolder(tmp_path / "nowhere")
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(NotADirectoryError, match="file.txt"):
        ImageFolder(tmp_path / "file.txt")
    with pytest.raises(ValueError, match=r"no image file below .*other files there: 1"):
        ImageFolder(tmp_path)
    with pytest.raises(ValueError, match="extensions"):
        ImageFolder(tmp_path, ".png")
