"""Stage 3's buckets: the sizes that images are cut to, and batches of one size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from small_pixels import pictures

from lavit.data.images import image_size, load_image
from lavit.training.pixels.buckets import Buckets, Measured, cut, sizes_of, time_ids


def test_buckets_are_the_release_s_sizes_and_divisible():
    assert sizes_of(1024, True, 32)[1] == (896, 1152)
    assert sizes_of(512, True, 32) == tuple((h // 2, w // 2) for h, w in sizes_of(1024, True, 32))
    assert sizes_of(48, False, 8) == ((48, 48),)
    with pytest.raises(ValueError, match="size: expected a positive multiple of 8 .*, got 30"):
        sizes_of(30, False, 8)
    with pytest.raises(ValueError, match="size: expected one whose buckets are multiples of 64.*; 768 has one of 672"):
        sizes_of(768, True, 64)


def test_an_image_is_covered_and_cut_in_the_middle():
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 6, 1).repeat(3, 2))
    same, at = cut(image, (2, 2))
    assert at == (0, 2) and np.array(same)[:, :, 0].tolist() == [[2, 3], [8, 9]]
    larger, at = cut(Image.new("RGB", (30, 50)), (16, 24))
    assert larger.size == (24, 16) and at == (12, 0)
    assert time_ids((50, 30), (16, 24)) == [50, 30, 12, 0, 16, 24]


def test_a_size_from_the_header_is_the_size_of_the_loaded_image(tmp_path):
    image, turned = Image.new("RGB", (7, 5)), Image.Exif()
    turned[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=turned)
    image.save(tmp_path / "plain.png")
    for name in ("turned.jpg", "plain.png"):
        loaded = load_image(tmp_path / name)
        assert image_size(tmp_path / name) == (loaded.height, loaded.width)


def test_a_batch_holds_one_bucket_and_buckets_come_by_their_share(tmp_path):
    from lavit.data import ImageFolder

    folder = ImageFolder(pictures(tmp_path / "images", [(40, 40)] * 6 + [(30, 60)] * 3 + [(50, 34)] * 3))
    stream = Buckets(Measured(folder, sizes_of(64, True, 4)), 2, seed=0, workers=0)
    batches = [next(stream) for _ in range(12)]
    shapes = [tuple(batch["images"].shape[1:3]) for batch in batches]
    assert [shapes.count(size) for size in ((64, 64), (48, 84), (76, 52))] == [6, 3, 3]
    assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == sorted([*range(12)] * 2)
    for batch in batches:
        for number, told in zip(batch["index"].tolist(), batch["time_ids"].tolist(), strict=True):
            original = folder[number].size[::-1]
            assert told[:2] == list(original) and told[4:] == list(batch["images"].shape[1:3])
    first = batches[0]
    wanted = [np.array(cut(folder[number], shapes[0])[0]) for number in first["index"].tolist()]
    assert np.array_equal(first["images"].numpy(), np.stack(wanted))
    again = Buckets(Measured(folder, sizes_of(64, True, 4)), 2, seed=0, workers=1)
    halfway = Buckets(Measured(folder, sizes_of(64, True, 4)), 2, seed=0, workers=0)
    for _ in range(5):
        next(halfway)
    again.load_state_dict(halfway.state_dict())
    for batch in batches[5:]:
        assert torch.equal(next(again)["images"], batch["images"])
    again.close()
