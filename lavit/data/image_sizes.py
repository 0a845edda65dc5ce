"""The sizes of image files, told in a line before they are made small."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lavit.data.images import ImageError, image_size

SAMPLE = 256  # files whose headers are read


def sizes_line(paths: Sequence[str | os.PathLike[str]], size: tuple[int, int], how: str, sample: int = SAMPLE) -> str:
    """ "images: 3 120 files, 640 x 480 to 64 x 64 (crop)", widths first.

    paths: files, of which a sample is looked at, evenly spread. size: (height, width) that they get. how: in a word.
    """
    count = f"{len(paths):,}".replace(",", " ") + f" file{'s' * (len(paths) != 1)}"
    step = max(1, -(-len(paths) // sample))
    found = Counter(known_sizes(paths[::step]))
    if not found:
        return f"images: {count}, to {_told(size)} ({how})"
    if set(found) == {size}:
        return f"images: {count} of {_told(size)}"
    ordered = sorted(found, key=lambda one: (one[0] * one[1], one))
    if len(found) == 1:
        from_size = f", {_told(ordered[0])}"
    else:
        from_size = f" between {_told(ordered[0])} and {_told(ordered[-1])}"
        common, times = found.most_common(1)[0]
        if 2 * times > found.total():
            from_size += f", most {_told(common)},"
    smaller = sum(times for one, times in found.items() if one[0] < size[0] and one[1] < size[1])
    if smaller:
        how += ", enlarged" if smaller == found.total() else ", some enlarged"
    return f"images: {count}{from_size} to {_told(size)} ({how})"


def known_sizes(paths: Iterable[str | os.PathLike[str]]) -> Iterator[tuple[int, int]]:
    """(height, width) of each file of which a header tells it; the others are named when they are to be read."""
    for path in paths:
        try:
            yield image_size(path)
        except ImageError:
            continue


def _told(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
