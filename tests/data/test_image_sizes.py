"""What is said of image files before they are made small."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lavit.data.image_sizes import sizes_line


def files(folder: Path, *sizes: tuple[int, int]) -> list[Path]:
    paths = [folder / f"{number:04}.png" for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        Image.new("RGB", size).save(path)
    return paths


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ([(64, 48)] * 3, "images: 3 files, 64 x 48 to 32 x 32 (crop)"),
        ([(32, 32)], "images: 1 file of 32 x 32"),
        ([(8, 6), (9, 6), (8, 6)], "images: 3 files between 8 x 6 and 9 x 6, most 8 x 6, to 32 x 32 (crop, enlarged)"),
        ([(64, 48), (40, 90)], "images: 2 files between 64 x 48 and 40 x 90 to 32 x 32 (crop)"),
        ([(16, 16)], "images: 1 file, 16 x 16 to 32 x 32 (crop, enlarged)"),
        ([(16, 16), (64, 64)], "images: 2 files between 16 x 16 and 64 x 64 to 32 x 32 (crop, some enlarged)"),
    ],
)
def test_sizes_are_told_widths_first(tmp_path, sizes, line):
    assert sizes_line(files(tmp_path, *sizes), (32, 32), "crop") == line


def test_files_that_cannot_be_read_are_passed_over_and_a_sample_is_looked_at(tmp_path):
    paths = files(tmp_path, *[(64, 48)] * 6)
    paths[1].write_text("no image")
    assert sizes_line(paths, (8, 8), "pad") == "images: 6 files, 64 x 48 to 8 x 8 (pad)"
    assert sizes_line(paths[1:2], (8, 16), "pad") == "images: 1 file, to 16 x 8 (pad)"
    Image.new("RGB", (5, 5)).save(paths[2])  # not in the sample
    assert sizes_line(paths * 250, (8, 8), "pad", sample=500) == "images: 1 500 files, 64 x 48 to 8 x 8 (pad)"
