"""From pictures to tensors: the release's resize and normalisation for every accepted kind of picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lavit.tokenizer import LaVITImageProcessor
from lavit.tokenizer.processing import CLIP_MEAN, CLIP_STD, FITS, processor_for


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


def test_arrays_and_tensors_may_have_their_channels_first_or_last() -> None:
    processor = LaVITImageProcessor(16)
    last = np.array(picture(20, 14))
    first = np.ascontiguousarray(last.transpose(2, 0, 1))
    expected, from_floats = processor(picture(20, 14)), processor(torch.from_numpy(first) / 255)
    for form in (last, first, torch.from_numpy(last), torch.from_numpy(first)):
        for same in (form, form[None], [form], torch.from_numpy(last).permute(2, 0, 1)):
            assert torch.equal(processor(same), expected)
    for floats in (torch.from_numpy(first) / 255, torch.from_numpy(last) / 255):
        for same in (floats, floats[None], [floats]):
            assert torch.equal(processor(same), from_floats)
    mixed = [picture(20, 14), first, torch.from_numpy(last), last]
    assert torch.equal(processor(mixed), expected.expand(4, -1, -1, -1))
    two = torch.from_numpy(np.stack([first, first[:, ::-1].copy()]))
    assert torch.equal(processor(two), processor(list(two))) and torch.equal(processor(two)[:1], expected)


@pytest.mark.parametrize("name, shape", [("channels_first", (3, 6, 3)), ("channels_last", (6, 3, 3))])
def test_a_named_format_decides_whatever_the_shape_allows(name: str, shape: tuple[int, ...]) -> None:
    processor = LaVITImageProcessor(8)
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    last = array.transpose(1, 2, 0) if name == "channels_first" else array
    expected = processor(Image.fromarray(np.ascontiguousarray(last)))
    for form in (array, torch.from_numpy(array), array[None], [array]):
        assert torch.equal(processor(form, input_data_format=name), expected)
    floats = torch.from_numpy(array) / 255
    first = torch.from_numpy(np.ascontiguousarray(last.transpose(2, 0, 1))) / 255
    assert torch.equal(processor(floats, input_data_format=name), processor(first, input_data_format="channels_first"))


def test_three_by_three_is_read_as_its_type_usually_lies() -> None:
    """Channels last for bytes, first for floats, where the shape allows both."""
    processor = LaVITImageProcessor(8)
    array = np.random.default_rng(1).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    for form in (array, torch.from_numpy(array)):
        assert torch.equal(processor(form), processor(Image.fromarray(array)))
    floats = torch.from_numpy(array) / 255
    assert torch.equal(processor(floats), processor(floats, input_data_format="channels_first"))
    assert not torch.equal(processor(floats), processor(floats, input_data_format="channels_last"))


def test_an_array_that_lies_otherwise_than_named_is_refused() -> None:
    processor = LaVITImageProcessor(8)
    with pytest.raises(ValueError, match=r"images: expected uint8 arrays of shape \(3, H, W\), got \(5, 6, 3\)"):
        processor(np.zeros((5, 6, 3), np.uint8), input_data_format="channels_first")
    with pytest.raises(ValueError, match=r"images: expected float tensors of shape \(H, W, 3\), got \(3, 5, 6\)"):
        processor(torch.zeros(3, 5, 6), input_data_format="channels_last")
    with pytest.raises(ValueError, match="input_data_format: expected channels_first or channels_last, got 'HWC'"):
        processor([], input_data_format="HWC")


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (0, 0, 3), (3, 0, 4), (3, 4, 0), (0, 3, 3), (3, 0, 3)])
@pytest.mark.parametrize("kind", [np.uint8, torch.uint8, torch.float32, torch.float16])
def test_a_picture_without_pixels_is_named_with_its_shape(shape: tuple[int, ...], kind: Any) -> None:
    processor = LaVITImageProcessor(8)
    zeros = np.zeros if kind is np.uint8 else torch.zeros
    empty, batch = zeros(shape, dtype=kind), zeros((2, *shape), dtype=kind)
    told = f"images: expected .* with pixels, got shape {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=f"{told}$"):
        processor(empty)
    with pytest.raises(ValueError, match=f"{told} for image 0$"):
        processor(batch)
    with pytest.raises(ValueError, match=f"{told} for image 1$"):
        processor([picture(), empty])


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_pil_image_without_pixels_is_named_with_its_size(mode: str, size: tuple[int, int]) -> None:
    empty, told = Image.new(mode, size), f"images: expected pixels, got a PIL image of {size[0]} x {size[1]}"
    with pytest.raises(ValueError, match=f"{told}$"):
        LaVITImageProcessor(8)(empty)
    with pytest.raises(ValueError, match=f"{told} for image 1$"):
        LaVITImageProcessor(8)([picture(), empty])


@pytest.mark.parametrize(
    "shape", [(5, 6), (5, 6, 1), (5, 6, 4), (1, 5, 6), (4, 5, 6), (2, 5, 6, 4), (2, 1, 5, 6), (7,)]
)
@pytest.mark.parametrize("kind", [np.uint8, torch.uint8, torch.float32])
def test_other_channel_counts_are_refused_with_their_shape(shape: tuple[int, ...], kind: Any) -> None:
    zeros = np.zeros if kind is np.uint8 else torch.zeros
    told = str(shape[1:] if len(shape) == 4 else shape)
    with pytest.raises(ValueError, match=f"images: expected .*got .*{re.escape(told)}"):
        LaVITImageProcessor(8)(zeros(shape, dtype=kind))
    with pytest.raises(ValueError, match=f"images: expected .*got .*{re.escape(str(shape))} for image 1"):
        LaVITImageProcessor(8)([picture(), zeros(shape, dtype=kind)])


@pytest.mark.parametrize("side", [8, 5])  # as it is, and to be resized
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 255.0, 1.01, -0.01])
def test_floats_outside_zero_to_one_are_refused(side: int, value: float) -> None:
    floats = torch.full((3, side, side), 0.5)
    floats[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"images: expected floats in \[0, 1\], got values from .* for image 0"):
        LaVITImageProcessor(8)(floats[None])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floats_may_be_off_by_rounding(dtype: torch.dtype) -> None:
    """The way through standardised pixels and back rounds three times, each by half an eps of numbers below 4."""
    mean, std = (torch.tensor(v, dtype=dtype).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    array = np.random.default_rng(0).integers(0, 2, (3, 40, 40)) * 255
    there = (torch.from_numpy(array / 255).to(dtype) - mean) / std
    back = there * std + mean
    processor = LaVITImageProcessor(40)
    expected = processor(torch.from_numpy(array / 255).float())
    slack = max(0.5 / 255, 4 * torch.finfo(dtype).eps) / min(CLIP_STD)
    assert (processor(back) - expected).abs().max() <= slack


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


# ------------------------------------------------------------------------------------------------------------------ fit


def quartered(width: int, height: int) -> Image.Image:
    """Red, green, blue and black quarters of the longer side."""
    long, across = max(width, height), width > height
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]], np.uint8)
    line = colours[np.arange(long) * 4 // long]
    pixels = np.broadcast_to(line[None] if across else line[:, None], (height, width, 3))
    return Image.fromarray(np.ascontiguousarray(pixels))


@pytest.mark.parametrize("size", [(80, 40), (40, 80)])
def test_crop_keeps_the_middle_square_of_the_resized_picture(size) -> None:
    processor = LaVITImageProcessor(20, fit="crop")
    whole = picture(*size).resize((size[0] // 2, size[1] // 2), Image.Resampling.BICUBIC)
    left, top = (whole.width - 20) // 2, (whole.height - 20) // 2
    expected = np.asarray(whole.crop((left, top, left + 20, top + 20)), int)
    found = np.asarray(processor.resize(picture(*size)), int)
    assert np.abs(found - expected).max() <= 1  # PIL rounds after each of the two directions, in another order
    colours = {tuple(c) for row in np.asarray(processor.resize(quartered(*size)))[5:15:9, 5:15:9] for c in row}
    assert colours == {(0, 255, 0), (0, 0, 255)}


@pytest.mark.parametrize("size", [(80, 40), (40, 80), (41, 80), (400, 1)])
def test_pad_keeps_everything_between_white_margins(size) -> None:
    processor = LaVITImageProcessor(20, fit="pad")
    found = np.asarray(processor.resize(picture(*size)))
    across = size[0] > size[1]
    inner = max(1, round(20 * min(size) / max(size)))
    before = (20 - inner) // 2
    rows = found if across else found.swapaxes(0, 1)
    assert (rows[:before] == 255).all() and (rows[before + inner :] == 255).all()
    small = picture(*size).resize((20, inner) if across else (inner, 20), Image.Resampling.BICUBIC)
    small = np.asarray(small) if across else np.asarray(small).swapaxes(0, 1)
    assert np.array_equal(rows[before : before + inner], small)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_squares_are_resized_alike_whatever_fits_others(fit) -> None:
    for size in (16, 30):
        assert torch.equal(
            LaVITImageProcessor(16, fit=fit)(picture(size, size)), LaVITImageProcessor(16)(picture(size, size))
        )


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_floats_fit_as_bytes_do(fit) -> None:
    floats = torch.from_numpy(np.array(picture())).permute(2, 0, 1).float() / 255
    processor = LaVITImageProcessor(16, (0, 0, 0), (1, 1, 1), fit)
    assert (processor(floats) - processor(picture())).abs().max() < 1.5 / 255


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(80, 40), (37, 80), (8, 8)])
def test_what_is_seen_resizes_to_what_the_model_reads(fit, size) -> None:
    processor = LaVITImageProcessor(20, fit=fit)
    seen = processor.seen(quartered(*size))
    assert fit == "stretch" or seen.width == seen.height
    found, again = (np.asarray(p, float) for p in (processor.resize(quartered(*size)), processor.resize(seen)))
    # Within half a pixel of the square: margins and crops of odd sizes have no middle pixel.
    assert np.abs(found - again).mean() < 255 / 20


def test_fit_is_saved_and_files_without_it_stretch(tmp_path: Path) -> None:
    LaVITImageProcessor(16, fit="pad").save_pretrained(tmp_path)
    assert LaVITImageProcessor.from_pretrained(tmp_path).fit == "pad"
    LaVITImageProcessor(16).save_pretrained(tmp_path)
    assert "fit" not in json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert LaVITImageProcessor.from_pretrained(tmp_path).fit == "stretch"
    assert processor_for(16, tmp_path, "crop").fit == "crop" and processor_for(16, tmp_path).fit == "stretch"
    with pytest.raises(ValueError, match="fit: expected one of stretch, crop, pad, got 'fill'"):
        LaVITImageProcessor(16, fit="fill")


def test_fingerprints_tell_fits_apart_and_are_the_old_ones_for_stretch() -> None:
    found = {fit: LaVITImageProcessor(16, fit=fit) for fit in FITS}
    assert torch.equal(found["stretch"].as_tensor(), torch.tensor([16, *CLIP_MEAN, *CLIP_STD]))
    assert found["stretch"].to_dict().keys() == {"image_processor_type", "size", "mean", "std"}
    assert len({tuple(processor.as_tensor().tolist()) for processor in found.values()}) == 3
