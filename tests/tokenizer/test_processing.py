"""From pictures to tensors: the release's resize and normalisation for every accepted kind of picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lavit.tokenizer import LaVITImageProcessor
from lavit.tokenizer.processing import CLIP_MEAN, CLIP_STD


def picture(width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_resize_is_bicubic_without_crop_then_clip_normalisation() -> None:
    out = LaVITImageProcessor(16)(picture())
    resized = np.asarray(picture().resize((16, 16), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    expected = (resized - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    assert out.dtype == torch.float32 and out.shape == (1, 3, 16, 16)
    np.testing.assert_allclose(out[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_pil_array_and_tensor_of_one_picture_agree() -> None:
    processor = LaVITImageProcessor(16)
    array = np.asarray(picture(16, 16))
    expected = processor(picture(16, 16))
    floats = torch.tensor(array).permute(2, 0, 1).float() / 255
    for same in (array, torch.tensor(array), [array], array[None], floats, floats[None], [picture(16, 16)]):
        torch.testing.assert_close(processor(same), expected, rtol=0, atol=1e-6)


def test_float_pictures_are_resized_like_bytes() -> None:
    floats = torch.from_numpy(np.array(picture())).permute(2, 0, 1).float() / 255
    # PIL rounds bytes to 1/255 and clips the filter's overshoot; the coarse picture overshoots little.
    processor = LaVITImageProcessor(16, (0, 0, 0), (1, 1, 1))
    assert (processor(floats) - processor(picture())).abs().max() < 1.5 / 255


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_other_modes_become_rgb(mode: str) -> None:
    assert LaVITImageProcessor(8)(picture().convert(mode)).shape == (1, 3, 8, 8)


def test_unnormalize_is_the_way_back() -> None:
    array = np.asarray(picture(16, 16))
    processor = LaVITImageProcessor(16)
    assert np.array_equal(processor.unnormalize(processor(array))[0].numpy(), array)


def test_no_pictures_give_an_empty_batch() -> None:
    assert LaVITImageProcessor(8)([]).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    "bad", [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8), np.uint8), torch.zeros(1, 8, 8), np.zeros(8)]
)
def test_wrong_channel_counts_are_named(bad: object) -> None:
    with pytest.raises((ValueError, TypeError), match="images: expected"):
        LaVITImageProcessor(8)(bad)


@pytest.mark.parametrize("bad", ["a.png", [3], np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint16)])
def test_wrong_types_are_named(bad: object) -> None:
    with pytest.raises(TypeError, match="images: expected"):
        LaVITImageProcessor(8)(bad)


def test_settings_are_saved_and_read_back(tmp_path: Path) -> None:
    processor = LaVITImageProcessor(48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    processor.save_pretrained(tmp_path)
    assert LaVITImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


@pytest.mark.parametrize("bad", [{"size": 0}, {"mean": (0.5,)}, {"std": (1, 1, 0)}, {"crop": True}])
def test_settings_that_cannot_be_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        LaVITImageProcessor(**bad)
