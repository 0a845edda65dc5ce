"""Laws of the linear R² of patch pixels: what features hold and what they do not, in any number of parts."""

from __future__ import annotations

import pytest
import torch
from tiny_tokenizer import TINY

from lavit.evaluation.patch_pixels import Regression, linear_r2, measure_patch_pixels, pixels_of
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig


def test_features_that_hold_all_pixels_linearly_have_r2_of_1_and_foreign_ones_of_0():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(200, 4, 6, generator=generator)
    features = pixels @ torch.randn(6, 8, generator=generator) + 3
    assert linear_r2(features, pixels, ridge=0.0) == pytest.approx(1, abs=1e-9)
    # 400 rows, 9 weights for each output: fitting noise costs about 9 / 400.
    assert -0.1 < linear_r2(torch.randn(200, 4, 8, generator=generator), pixels) < 0.0
    assert linear_r2(features, torch.ones(200, 4, 6)) == 0


def test_half_of_the_variance_that_features_hold_is_an_r2_of_one_half():
    pixels = torch.randn(4000, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert linear_r2(pixels[..., :1], pixels) == pytest.approx(0.5, abs=0.03)  # 3 standard errors of 2000 rows


def test_rows_may_come_in_any_parts():
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(60, 5, generator=generator), torch.randn(60, 3, generator=generator)
    whole, parts = Regression(), Regression()
    whole.add(x, y)
    for one, two in zip(x.split(7), y.split(7), strict=True):
        parts.add(one, two)
    torch.testing.assert_close(parts.fit(), whole.fit(), rtol=1e-10, atol=1e-12)
    best = torch.linalg.lstsq(torch.cat((x, torch.ones(60, 1)), 1).double(), y.double()).solution
    torch.testing.assert_close(whole.fit(ridge=0.0), best, rtol=1e-9, atol=1e-11)


def test_patches_are_in_the_order_of_the_encoders_features():
    images = torch.arange(2 * 3 * 16, dtype=torch.float32).view(2, 3, 4, 4)
    patches = pixels_of(images, 4)
    assert torch.equal(patches[1, 2].view(3, 2, 2), images[1, :, 2:, :2])


def test_a_tokenizer_is_measured_alike_in_any_batches():
    torch.manual_seed(0)
    model = LaVITTokenizer(LaVITTokenizerConfig.preset("small", **TINY)).eval()
    images = torch.randn(22, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)  # a colour for each patch
    whole, parts = measure_patch_pixels(model, [images]), measure_patch_pixels(model, images.split(3))
    assert whole.images == 22 and 0 < whole.encoder < 1 and whole.tokens < whole.encoder
    assert parts.encoder == pytest.approx(whole.encoder, abs=1e-5)  # float32 features of other batches
    assert parts.tokens == pytest.approx(whole.tokens, abs=1e-5)


def test_the_encoder_is_measured_by_its_raw_features():
    torch.manual_seed(0)
    model = LaVITTokenizer(LaVITTokenizerConfig.preset("small", **TINY)).eval()
    images = torch.randn(40, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    before = measure_patch_pixels(model, [images])
    with torch.no_grad():
        assert before.encoder == pytest.approx(linear_r2(model.encoder(images), pixels_of(images, 16)), abs=1e-6)
    model.set_feature_statistics(torch.randn(16, 16), torch.rand(16, 16) + 0.5)
    assert measure_patch_pixels(model, [images]).encoder == pytest.approx(before.encoder, abs=1e-5)


def test_too_few_images_are_refused():
    torch.manual_seed(0)
    model = LaVITTokenizer(LaVITTokenizerConfig.preset("small", **TINY)).eval()
    with pytest.raises(ValueError, match="batches: expected at least 2 images, got 1"):
        measure_patch_pixels(model, [torch.zeros(1, 3, 32, 32)])
