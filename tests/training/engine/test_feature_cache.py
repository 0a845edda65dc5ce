"""The cache of encoder features: whole or not there, used only where it fits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lavit.data import ImageFolder
from lavit.tokenizer import LaVITImageProcessor
from lavit.training.engine.feature_cache import fingerprint, open_or_build

IMAGES = torch.arange(7 * 3 * 4 * 4).reshape(7, 3, 4, 4) / 336


class Encoder:
    """Counts its calls; patch features of 2x2 pixels."""

    def __init__(self, scale=1.0):
        self.weight, self.calls = torch.tensor([scale]), 0

    def __call__(self, images):
        self.calls += 1
        return torch.nn.functional.unfold(images, 2, stride=2).transpose(1, 2) * self.weight

    def build(self, root, dataset=IMAGES, **kwargs):
        return open_or_build(root, self, [("weight", self.weight)], dataset, batch_size=3, **kwargs)


def test_cached_features_are_the_encoder_s(tmp_path):
    encoder = Encoder(2.0)
    assert torch.equal(encoder.build(tmp_path).values, Encoder(2.0)(IMAGES))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_rounded_feature(tmp_path, dtype):
    values = Encoder(3.0).build(tmp_path, dtype=dtype).values
    assert values.dtype == dtype and torch.equal(values, Encoder(3.0)(IMAGES).to(dtype))


def test_cache_that_fits_is_used_again(tmp_path):
    Encoder().build(tmp_path)
    again = Encoder()
    again.build(tmp_path)
    assert again.calls == 0


@pytest.mark.parametrize("change", ["weights", "data", "precision"])
def test_cache_that_does_not_fit_is_made_anew(tmp_path, change):
    Encoder().build(tmp_path)
    encoder = Encoder(1.5 if change == "weights" else 1.0)
    dataset = IMAGES + 1 if change == "data" else IMAGES
    cache = encoder.build(tmp_path, dataset, dtype=torch.float16 if change == "precision" else torch.float32)
    assert encoder.calls > 0
    assert torch.equal(cache.values, Encoder(encoder.weight.item())(dataset).to(cache.values.dtype))


def test_failure_leaves_nothing_behind(tmp_path):
    encoder = Encoder()

    def failing(images):
        if encoder.calls == 1:
            raise RuntimeError("out of memory")
        return encoder(images)

    with pytest.raises(RuntimeError, match="out of memory"):
        open_or_build(tmp_path / "c", failing, [], IMAGES, batch_size=3)
    assert list((tmp_path / "c").iterdir()) == []


def test_unreadable_images_are_left_out_counted_and_named(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(np.full((4, 4, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) // 2])
    processor = LaVITImageProcessor(size=4)
    cache = Encoder().build(tmp_path / "cache", ImageFolder(folder), transform=processor)
    wanted = Encoder()(processor([Image.open(folder / f"{i}.png") for i in (0, 1, 2, 4)]))
    assert torch.equal(cache.values, wanted)
    assert [(index, name) for index, name, _ in cache.skipped] == [(3, str(folder / "3.png"))]
    about = json.loads((cache.folder / "features.json").read_text())
    assert about["skipped"][0][1].endswith("3.png")


def test_replaced_file_is_noticed(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    before = fingerprint([], ImageFolder(tmp_path), torch.float32)
    assert fingerprint([], ImageFolder(tmp_path), torch.float32) == before
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "a.png")
    assert fingerprint([], ImageFolder(tmp_path), torch.float32) != before
