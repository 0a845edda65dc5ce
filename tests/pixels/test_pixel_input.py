"""What is drawn from: codes, images, features, prompts; whatever is bad is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pixels import (
    DIM,
    NUM_CODES,
    PATCHES,
    SIDE,
    tiny_codes,
    tiny_negative,
    tiny_pipeline,
    tiny_tokenizer,
    tiny_unet,
    tiny_vae,
)
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lavit.kernels import Ragged
from lavit.language import LaVIT, LaVITProcessor, SamplingSettings
from lavit.language.text_tokenizer import train_text_tokenizer
from lavit.pixels import ASPECT_RATIOS, LaVITPixelPipeline, PixelConditioner, nearest_size
from lavit.pixels.inputs import read_codes
from lavit.tokenizer import LaVITImageProcessor, VisualTokens

SETTINGS: dict[str, Any] = {"seeds": [1, 2], "num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture(scope="module")
def pipe() -> LaVITPixelPipeline:
    return tiny_pipeline()


def pictures() -> list[Image.Image]:
    arrays = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in arrays]


def test_images_are_drawn_by_way_of_their_codes(pipe: LaVITPixelPipeline, tmp_path: Path) -> None:
    """However an image is given, and the same as from its codes, or from what they decode to."""
    given = pictures()
    given[0].save(tmp_path / "0.png")
    pixels = pipe.image_processor(given)
    tokens = pipe.tokenizer.encode(pixels, deterministic=True)
    expected = pipe(tokens, **SETTINGS).images
    assert torch.equal(pipe(tokens.ragged(), **SETTINGS).images, expected)
    assert torch.equal(pipe(features=pipe.tokenizer.decode(tokens), **SETTINGS).images, expected)
    arrays = np.stack([np.array(image) for image in given])
    forms = (
        given,
        arrays,
        torch.from_numpy(arrays),
        torch.from_numpy(arrays).permute(0, 3, 1, 2),
        pixels,
        [tmp_path / "0.png", given[1]],
        [str(tmp_path / "0.png"), arrays[1]],
    )
    for form in forms:
        assert torch.equal(pipe(images=form, **SETTINGS).images, expected)
    alone = pipe(images=given[0], **{**SETTINGS, "seeds": [1]}).images
    torch.testing.assert_close(alone, expected[:1], rtol=1e-4, atol=1e-5)


def test_image_seeds_govern_the_selection(pipe: LaVITPixelPipeline) -> None:
    pixels = pipe.image_processor(pictures())
    tokens = pipe.tokenizer.encode(pixels, seeds=[5, 6])
    drawn = pipe(images=pixels, image_seeds=[5, 6], **SETTINGS).images
    assert torch.equal(drawn, pipe(tokens, **SETTINGS).images)


def test_rows_beyond_the_last_image_are_not_looked_at(pipe: LaVITPixelPipeline) -> None:
    codes = tiny_codes(3, 9)
    more = Ragged(torch.cat((codes.values, torch.tensor([-7, NUM_CODES]))), codes.cu_seqlens, PATCHES)
    assert torch.equal(pipe(more, **SETTINGS).images, pipe(codes, **SETTINGS).images)


@pytest.mark.parametrize("code", [-1, NUM_CODES])
def test_a_code_out_of_range_is_named_with_its_image(pipe: LaVITPixelPipeline, code: int) -> None:
    codes = Ragged.from_list([torch.tensor([1, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([0, code])])
    with pytest.raises(ValueError, match=rf"tokens: expected codes 0 to 15, got {code} for image 2"):
        pipe(codes)


def test_more_codes_than_positions_are_named_with_their_image(pipe: LaVITPixelPipeline) -> None:
    message = "tokens: expected at most 16 codes an image, the decoder's positions, got 17 for image 1"
    with pytest.raises(ValueError, match=message):
        pipe(tiny_codes(3, PATCHES + 1))
    tokens = VisualTokens(torch.zeros(17, dtype=torch.int64), torch.tensor([0, 0, 17]), torch.ones(2, PATCHES) > 0)
    with pytest.raises(ValueError, match=message):
        pipe(tokens)


@pytest.mark.parametrize(
    ("values", "cu", "message"),
    [
        (torch.zeros(3), [0, 3], r"tokens: expected integer codes of shape \(T,\), got torch.float32 \(3,\)"),
        (torch.zeros(3, 1, dtype=torch.int64), [0, 3], r"tokens: expected integer codes of shape \(T,\)"),
        (torch.zeros(3, dtype=torch.int64), [0, 4], "tokens: expected cu_seqlens that rise from 0 to at most 3"),
        (torch.zeros(3, dtype=torch.int64), [0, 2, 1], "tokens: expected cu_seqlens that rise from 0 to at most 3"),
        (torch.zeros(3, dtype=torch.int64), [1, 2], "tokens: expected cu_seqlens that rise from 0 to at most 3"),
        (torch.zeros(3, dtype=torch.int64), [], r"tokens: expected cu_seqlens of shape \(B \+ 1,\)"),
    ],
)
def test_ragged_codes_that_make_no_sense_are_refused(values: Tensor, cu: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_codes(Ragged(values, torch.tensor(cu, dtype=torch.int32), 3), NUM_CODES, PATCHES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": None}, "tokens: expected exactly one of tokens, images and features, got none"),
        ({"features": torch.zeros(1, PATCHES, 16)}, "expected exactly one of .*, got tokens and features"),
        ({"tokens": None, "features": torch.zeros(1, 3, 16)}, r"features: .* shape \(B, 16, 16\), got \(1, 3, 16\)"),
        ({"tokens": None, "images": torch.zeros(1, 3, 8, 8)}, r"images: .* shape \(B, 3, 16, 16\), got \(1, 3, 8, 8\)"),
        ({"height": 17}, r"height: expected a positive multiple of 2 .*, got 17"),
        ({"width": 0}, r"width: expected a positive multiple of 2 .*, got 0"),
        ({"width": 16.0}, r"width: expected a positive multiple of 2 .*, got 16.0"),
        ({"num_inference_steps": 0}, "num_inference_steps: expected an integer of at least 1, got 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale: expected a finite number of at least 0, got nan"),
        ({"guidance_scale": -1}, "guidance_scale: expected a finite number of at least 0, got -1"),
        ({"output_type": "jpeg"}, "output_type: expected one of pil, np, pt, latent, got 'jpeg'"),
        ({"seeds": [1]}, "seeds: expected 2, one an image, got 1"),
        ({"seeds": [1, 2.5]}, "seeds: expected integers, got 2.5 for image 1"),
        ({"seeds": [1, 2], "generator": torch.Generator()}, "seeds: expected either seeds or generator, got both"),
        ({"generator": [torch.Generator()]}, "generator: expected one, or one for each of 2 images, got 1"),
        (
            {"callback_on_step_end_tensor_inputs": ["latents", "noise"]},
            r"callback_on_step_end_tensor_inputs: expected names of latents, .*, got \['noise'\]",
        ),
    ],
)
def test_bad_settings_are_refused(pipe: LaVITPixelPipeline, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(**{"tokens": tiny_codes(3, 9), **settings})


def test_an_image_that_is_no_number_is_not_handed_out() -> None:
    pipe = tiny_pipeline()
    torch.nn.init.constant_(pipe.unet.conv_out.bias, float("nan"))
    with pytest.raises(ValueError, match="images: not finite; DDIMScheduler may need another number of steps"):
        pipe(tiny_codes(2, 3), **{**SETTINGS, "output_type": "np"})


def test_another_type_of_tokens_is_refused(pipe: LaVITPixelPipeline) -> None:
    with pytest.raises(TypeError, match="tokens: expected VisualTokens or Ragged, got list"):
        pipe([[1, 2]])


def test_a_bad_image_is_named(pipe: LaVITPixelPipeline, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image 1: .*broken.png"):
        pipe(images=[pictures()[0], tmp_path / "broken.png"])
    with pytest.raises(TypeError, match="image 0: images: expected uint8 arrays"):
        pipe(images=[np.zeros((4, 4, 3))])
    with pytest.raises(ValueError, match=r"image 0: expected one image, got shape \(2, 4, 4, 3\)"):
        pipe(images=[np.zeros((2, 4, 4, 3), dtype=np.uint8)])
    with pytest.raises(ValueError, match="features|images: expected finite values, got NaN or Inf"):
        pipe(images=torch.full((1, 3, SIDE, SIDE), float("nan")))
    with pytest.raises(ValueError, match="images: .* the pipeline has no image_processor"):
        tiny_pipeline(image_processor=None)(images=pictures())


def test_sizes_are_those_that_vae_and_unet_can_halve() -> None:
    pipe = tiny_pipeline("lowres")
    assert (pipe.vae_scale_factor, pipe.size_multiple) == (2, 4)
    with pytest.raises(ValueError, match=r"height: expected a positive multiple of 4 .*, got 18"):
        pipe(tiny_codes(3), height=18)


@pytest.mark.parametrize(
    ("layout", "parts", "message"),
    [
        ("small", {"unet": tiny_unet("lowres")}, r"unet: expected in_channels 3 \(pixels, without a VAE\), got 4"),
        (
            "lowres",
            {"unet": tiny_unet("lowres", cross_attention_dim=9)},
            "unet: expected cross_attention_dim 8, .*, got 9",
        ),
        (
            "lowres",
            {"unet": tiny_unet("lowres", out_channels=8)},
            r"unet: expected out_channels 4 \(the VAE's latents\)",
        ),
        ("lowres", {"vae": tiny_vae(latent_channels=2)}, r"unet: expected in_channels 2 \(the VAE's latents\), got 4"),
        (
            "lowres",
            {"conditioner": PixelConditioner(in_dim=8)},
            r"conditioner: expected .* \(B, 16, 16\), got \(256, 8\)",
        ),
        (
            "highres",
            {"unet": tiny_unet("lowres", cross_attention_dim=20)},
            "unet: expected addition_embed_type text_time for a high-res condition, got None",
        ),
        (
            "highres",
            {"unet": tiny_unet("highres", projection_class_embeddings_input_dim=35)},
            "unet: expected projection_class_embeddings_input_dim 36, got 35",
        ),
        (
            "lowres",
            {"unet": tiny_unet("highres", cross_attention_dim=DIM)},
            "unet: expected no addition_embed_type for a low-res condition, got 'text_time'",
        ),
        ("highres", {"negative": tiny_negative()}, "negative: expected rows of width 20, got 8"),
        ("lowres", {"safety_checker": torch.nn.Identity()}, "feature_extractor: expected one"),
    ],
)
def test_parts_that_do_not_fit_are_refused(layout: str, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(layout, **parts)


def test_the_nearest_of_the_releases_sizes() -> None:
    assert set(ASPECT_RATIOS) == {(width, height) for height, width in ASPECT_RATIOS}
    assert all(nearest_size(height * 3, width * 3) == (height, width) for height, width in ASPECT_RATIOS)
    assert nearest_size(1, 100) == (768, 1344) and nearest_size(480, 640) == (896, 1152)
    with pytest.raises(ValueError, match="width: expected a positive number, got 0"):
        nearest_size(3, 0)


# By way of a language model.


@pytest.fixture(scope="module")
def model_and_processor() -> tuple[LaVIT, LaVITProcessor]:
    processor = LaVITProcessor(LaVITImageProcessor(SIDE), train_text_tokenizer(["a red circle", "a blue square"], 340))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    language = LlamaForCausalLM(
        LlamaConfig(**sizes, vocab_size=processor.text_size, max_position_embeddings=96, initializer_range=0.3)
    )
    return LaVIT.from_parts(language, tiny_tokenizer()).eval(), processor


FEW = {"min_tokens": 1, "max_tokens": 6}


def test_prompts_of_text_and_images_are_drawn(
    pipe: LaVITPixelPipeline, model_and_processor: tuple[LaVIT, LaVITProcessor]
) -> None:
    """As the model's tokens of each, drawn with the prompt's own seed, which governs both."""
    model, processor = model_and_processor
    prompts = ["a red circle", [pictures()[0], "a blue square"], pictures()[1]]
    seeds = [3, 4, 5]
    drawn = pipe.generate(model, processor, prompts, seeds=seeds, text=FEW, num_inference_steps=2, output_type="pt")
    tokens = model.generate_tokens(prompts, processor, seeds=seeds, **FEW)
    assert drawn.tokens is not None and drawn.tokens.indices == [0, 1, 2]
    assert torch.equal(drawn.tokens.codes.values, tokens.codes.values)
    expected = pipe(tokens.codes, seeds=seeds, num_inference_steps=2, output_type="pt").images
    assert torch.equal(drawn.images, expected)
    settings = SamplingSettings(**FEW)
    again = pipe.generate(
        model, processor, prompts[:1], seeds=[3], text=settings, num_inference_steps=2, output_type="pt"
    )
    torch.testing.assert_close(again.images, expected[:1], rtol=1e-4, atol=1e-5)


def test_the_noise_of_samples_follows_their_seeds(
    pipe: LaVITPixelPipeline, model_and_processor: tuple[LaVIT, LaVITProcessor]
) -> None:
    """Of all samples, of the best of each prompt, and of the prompts that are left."""
    model, processor = model_and_processor
    prompts, seeds = ["a red circle", "", "a blue square"], [1, 2, 3, 4, 5, 6]
    text = {**FEW, "num_samples": 2, "on_error": "skip"}
    settings = {"num_inference_steps": 1, "output_type": "pt"}
    drawn = pipe.generate(model, processor, prompts, seeds=seeds, text=text, **settings)
    assert drawn.tokens is not None and drawn.tokens.indices == [0, 0, 2, 2]
    assert torch.equal(drawn.images, pipe(drawn.tokens.codes, seeds=[1, 2, 5, 6], **settings).images)

    def second(prompts: list[Any], features: Tensor) -> list[int]:
        return [place % 2 for place in range(len(prompts))]

    best = pipe.generate(model, processor, prompts, seeds=seeds, text={**text, "scorer": second}, **settings)
    assert best.tokens is not None and best.tokens.indices == [0, 2]
    torch.testing.assert_close(best.images, drawn.images[1::2], rtol=1e-4, atol=1e-5)
    free = pipe.generate(model, processor, prompts[:1], text=FEW, **settings)
    assert free.images.shape == (1, 3, SIDE, SIDE)


def test_a_model_of_other_codes_is_refused(
    pipe: LaVITPixelPipeline, model_and_processor: tuple[LaVIT, LaVITProcessor]
) -> None:
    other = tiny_pipeline(tokenizer=tiny_tokenizer(num_codes=NUM_CODES - 1))
    with pytest.raises(ValueError, match="model: expected one that writes the pipeline's 15 codes, got one of 16"):
        other.generate(*model_and_processor, ["a red circle"])
