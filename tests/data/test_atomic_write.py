"""atomic_write: the target is the old file or the whole new one, and nothing else is left in the folder."""

from __future__ import annotations

import os
import stat

import pytest

from lavit.data.atomic_write import atomic_write


def test_writes_whole_file_and_leaves_nothing_else(tmp_path):
    with atomic_write(tmp_path / "a.bin") as file:
        file.write(b"12")
        assert not (tmp_path / "a.bin").exists()
        file.write(b"34")
    assert (tmp_path / "a.bin").read_bytes() == b"1234"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_error_keeps_the_old_file_and_removes_the_temporary(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_write(target, "w") as file:
        file.write("new")
        raise error
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_permissions_follow_the_umask_or_the_old_file(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a") as file:
            file.write(b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    (tmp_path / "a").chmod(0o600)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"1")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_link_is_followed(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link", "w") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_device_is_written_to_not_replaced():
    with atomic_write(os.devnull) as file:
        file.write(b"1")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_missing_folder_and_bad_mode_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), atomic_write(tmp_path / "nowhere" / "a"):
        pass
    with pytest.raises(IsADirectoryError, match="folder"), atomic_write(tmp_path):
        pass
    with pytest.raises(ValueError, match="mode"), atomic_write(tmp_path / "a", "a"):
        pass


def test_long_names_are_legal(tmp_path):
    with atomic_write(tmp_path / ("x" * 250)) as file:
        file.write(b"1")
    assert len(os.listdir(tmp_path)) == 1
