"""What a U-Net is conditioned on: the golden values, ragged codes, both streams in one batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_pixels import DIM, DIM_2, PATCHES, tiny_codes, tiny_config, tiny_tokenizer
from torch import Tensor

from lavit.kernels import Ragged
from lavit.pixels import Condition, NegativeEmbeds, PixelConditioner
from lavit.pixels.conditioner import both_streams, zero_condition
from lavit.tokenizer import LaVITTokenizerConfig
from lavit.tokenizer.decoder import TokenDecoder

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(kind: str, dtype: torch.dtype) -> tuple[TokenDecoder, Ragged, dict[str, Tensor]]:
    """A decoder with its heads, codes for it, and the tensors of the file."""
    tensors = load_file(GOLDEN / f"decoder_{kind}.safetensors")
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    config = LaVITTokenizerConfig(
        image_size=84,
        hidden_size=176,
        encoder_depth=1,
        encoder_heads=2,
        decoder_depth=2,
        num_heads=2,
        decoder_out_dim=192,
        decoder_condition=kind,
        condition_dim=24,
        condition_dim_2=40,
    )
    decoder = TokenDecoder(config).to(dtype)
    decoder.load_state_dict({k[len("decoder.") :]: t for k, t in tensors.items() if k.startswith("decoder.")})
    return decoder, Ragged.from_list(list(tensors["codes"].split(tensors["lengths"].tolist()))), tensors


def relative(result: Tensor, expected: Tensor) -> float:
    return ((result - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_lowres_condition_equals_golden(dtype: torch.dtype, tolerance: float) -> None:
    decoder, codes, tensors = golden("lowres", dtype)
    condition = PixelConditioner.from_decoder(decoder)(decoder(codes))
    assert condition.pooled is None and condition.mask is None and condition.embeds.dtype == dtype
    assert relative(condition.embeds, tensors["out"]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_highres_condition_equals_golden(dtype: torch.dtype, tolerance: float) -> None:
    decoder, codes, tensors = golden("highres", dtype)
    embeds, pooled, _ = PixelConditioner.from_decoder(decoder)(decoder(codes))
    assert relative(embeds, tensors["prompt_embeds"]) < tolerance
    assert pooled is not None and relative(pooled, tensors["pooled_prompt_embeds"]) < tolerance


def test_heads_are_copies() -> None:
    decoder, _, _ = golden("lowres", torch.float32)
    conditioner = PixelConditioner.from_decoder(decoder)
    with torch.no_grad():
        conditioner.unet_proj.weight.zero_()
    assert decoder.unet_proj.weight.abs().sum() > 0


@pytest.mark.parametrize("kind", ["lowres", "highres"])
def test_ragged_codes_give_each_images_own_condition(kind: str) -> None:
    """An empty image, one of one code, one with a code for each patch: as one batch or one by one."""
    tokenizer = tiny_tokenizer().double()
    conditioner = PixelConditioner.for_tokenizer(tokenizer.config, kind).double()
    codes = tiny_codes(0, 1, PATCHES, 7)
    together = conditioner(tokenizer.decode(codes))
    assert together.embeds.shape == (4, PATCHES, DIM + DIM_2 if kind == "highres" else DIM)
    for image, ids in enumerate(codes.unbind()):
        alone = conditioner(tokenizer.decode(Ragged.from_list([ids])))
        torch.testing.assert_close(together.embeds[image : image + 1], alone.embeds, rtol=1e-10, atol=1e-12)
        if kind == "highres":
            torch.testing.assert_close(together.pooled[image : image + 1], alone.pooled, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["lowres", "highres"])
def test_what_is_saved_comes_back(kind: str, tmp_path: Path) -> None:
    conditioner = PixelConditioner.for_tokenizer(tiny_config(), kind, condition_dim=6)
    conditioner.save_pretrained(tmp_path)
    back = PixelConditioner.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    features = torch.randn(2, PATCHES, 16)
    assert back.embed_dim == (6 + DIM_2 if kind == "highres" else 6)
    for one, other in zip(conditioner(features), back(features), strict=True):
        assert one is other is None or torch.equal(one, other)


def test_sizes_follow_the_tokenizer() -> None:
    config = tiny_config(decoder_out_dim=20)
    conditioner = PixelConditioner.for_tokenizer(config, "highres")
    assert (conditioner.in_dim, conditioner.num_patches) == (20, PATCHES)
    assert (conditioner.embed_dim, conditioner.pooled_dim) == (DIM + DIM_2, DIM_2)


def test_the_shorter_stream_is_padded_and_masked() -> None:
    positive, stored = Condition(torch.randn(2, 7, 3)), NegativeEmbeds.from_tensor(torch.randn(1, 5, 3))
    embeds, pooled, mask = both_streams(stored(2), positive)
    assert torch.equal(embeds[:2, :5], stored.embeds.expand(2, -1, -1)) and embeds[:2, 5:].eq(0).all()
    assert torch.equal(embeds[2:], positive.embeds) and pooled is None
    assert mask.tolist() == [[1.0] * 5 + [0.0] * 2] * 2 + [[1.0] * 7] * 2


def test_zero_negatives_need_no_mask() -> None:
    positive = Condition(torch.randn(2, 7, 3), torch.randn(2, 4))
    embeds, pooled, mask = both_streams(zero_condition(positive), positive)
    assert embeds[:2].eq(0).all() and pooled[:2].eq(0).all() and mask is None
    assert torch.equal(embeds[2:], positive.embeds) and torch.equal(pooled[2:], positive.pooled)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="kind: expected one of lowres, highres, got 'midres'"):
        PixelConditioner("midres")
    with pytest.raises(ValueError, match="num_heads: expected a divisor of in_dim 10, got 4"):
        PixelConditioner("highres", in_dim=10, num_heads=4)
    with pytest.raises(ValueError, match="decoder: expected one with the heads of a U-Net"):
        PixelConditioner.from_decoder(tiny_tokenizer().decoder)
    with pytest.raises(ValueError, match=r"features: expected shape \(B, 16, 16\), got \(2, 15, 16\)"):
        PixelConditioner.for_tokenizer(tiny_config())(torch.zeros(2, 15, 16))
    with pytest.raises(ValueError, match=r"embeds: expected floats of shape \(length, dim\), got .* \(2, 5, 3\)"):
        NegativeEmbeds.from_tensor(torch.zeros(2, 5, 3))
