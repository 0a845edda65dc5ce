"""The encoder against the golden tensors, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from golden_tensors import assert_within_twice, golden, golden_config, relative, weights
from plain_formulas import cast
from plain_formulas import encoder as plain_encoder

from lavit.tokenizer.encoder import EvaEncoder


def encoder(dtype: torch.dtype) -> EvaEncoder:
    module = EvaEncoder(golden_config()).to(dtype)
    module.load_state_dict(weights("tokenizer", "tokenizer.encoder."))
    return module


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_features_equal_golden(dtype: torch.dtype, tolerance: float) -> None:
    tensors = golden("tokenizer")
    out = encoder(dtype)(tensors["images"].to(dtype), class_token=True)
    assert relative(out, tensors["encoder_features"]) < tolerance


def test_bfloat16_error_is_within_twice_that_of_plain_formulas() -> None:
    tensors = golden("tokenizer")
    images = tensors["images"].bfloat16()
    out = encoder(torch.bfloat16)(images, class_token=True)
    plain = plain_encoder(cast(weights("tokenizer", "tokenizer.encoder."), torch.bfloat16), images, 2, 2, 14)
    assert_within_twice(out, plain, tensors["encoder_features"])


def test_class_token_is_dropped_by_default() -> None:
    module = encoder(torch.float32)
    images = golden("tokenizer")["images"].float()[:1]
    assert torch.equal(module(images), module(images, class_token=True)[:, 1:])


@pytest.mark.parametrize("shape", [(1, 1, 84, 84), (1, 4, 84, 84), (1, 3, 84, 70), (3, 84, 84)])
def test_wrong_image_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 3, 84, 84\), got \("):
        encoder(torch.float32)(torch.zeros(shape))


def test_integer_pixels_are_refused() -> None:
    with pytest.raises(TypeError, match="images: expected normalised floating-point pixels"):
        encoder(torch.float32)(torch.zeros(1, 3, 84, 84, dtype=torch.uint8))
