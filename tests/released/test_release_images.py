"""Images as the release's own code read them, from pixels to codes and to what its language model is given."""

from __future__ import annotations

import pytest
import torch
from release_models import golden, lists, new_lavit, new_processor, pictures
from release_recipe import NUM_CODES, PATCHES, TEXT_SIZE, gumbel, noise
from torch import Tensor

from lavit.kernels import Ragged, Segment, segment_order
from lavit.language import LaVIT
from lavit.language.processing import no_ids
from lavit.tokenizer import LaVITTokenizerConfig
from lavit.tokenizer.quantizer import Quantizer

NOISE = gumbel("gumbel", 3, PATCHES, 2)


@pytest.fixture(scope="module")
def model() -> LaVIT:
    return new_lavit()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return new_processor().image_processor(pictures(0, 1, 2))


def close(found: Tensor, expected: Tensor) -> None:
    """As the golden files ask for in float32: 1e-5 of the greatest."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_pictures_of_any_size_become_the_releases_pixels(pixels: Tensor) -> None:
    assert torch.equal(pixels[:, :, ::4, ::4], golden("images")["pixels"])


@torch.no_grad()
def test_features_are_the_releases(model: LaVIT, pixels: Tensor) -> None:
    close(model.visual_tokenizer.encode_features(pixels), golden("images")["features"])


@torch.no_grad()
def test_the_same_noise_keeps_the_same_patches_and_gives_the_same_codes(model: LaVIT, pixels: Tensor) -> None:
    tokens = model.visual_tokenizer.encode(pixels, noise=NOISE)
    assert torch.equal(tokens.keep, golden("images")["keep"])
    assert tokens.lengths().tolist() == golden("images")["lengths"].tolist()
    assert torch.equal(tokens.ids + model.vocabulary.first_code_id, golden("images")["ids"].long())


@torch.no_grad()
def test_without_noise_the_likelier_choice_is_made(model: LaVIT, pixels: Tensor) -> None:
    """The release always adds noise; without, its own log-probabilities decide."""
    keep = model.visual_tokenizer.encode(pixels, deterministic=True).keep
    assert torch.equal(keep, golden("images")["log_probs"].argmax(-1) == 0)
    assert torch.equal(keep, golden("images")["plain_keep"]) and not torch.equal(keep, golden("images")["keep"])


@torch.no_grad()
def test_read_images_are_the_releases_embeddings(model: LaVIT, pixels: Tensor) -> None:
    """By the merger and the projector of `visual_weight.bin`, on the patches that the tokenizer keeps."""
    segments = segment_order([[Segment.FEATURES]] * 3)
    features = model.assemble(no_ids(), segments, images=pixels, noise=NOISE).features
    assert features is not None
    close(features, golden("images")["embeds"])


@torch.no_grad()
def test_codes_that_are_written_have_the_releases_ids(model: LaVIT, pixels: Tensor) -> None:
    batch = model.assemble(no_ids(), segment_order([[Segment.CODES]] * 3), images=pixels, noise=NOISE)
    lengths = golden("images")["lengths"].tolist()
    wanted = [[TEXT_SIZE, *ids.tolist(), TEXT_SIZE + 1] for ids in golden("images")["ids"].split(lengths)]
    assert lists(Ragged(batch.sequences.input_ids, batch.sequences.cu_seqlens, batch.max_seqlen)) == wanted


@torch.no_grad()
def test_distances_in_bfloat16_are_a_mode_and_exact_ones_the_default() -> None:
    """The release's codes under autocast. A product that falls on the border of two bfloat16 numbers may round either
    way where sums are ordered otherwise: one vector in 1000 may differ."""
    vectors = noise("distances: vectors", 2000, 32)
    codes = torch.nn.functional.normalize(noise("distances: codes", NUM_CODES, 32), dim=1)
    found = {}
    for distances in ("exact", "bfloat16"):
        quantizer = Quantizer(LaVITTokenizerConfig(distances=distances))
        quantizer.embedding.weight.copy_(codes)
        found[distances] = quantizer.nearest(vectors)
        vectors_with_nan = vectors[:3].clone()
        vectors_with_nan[1, 4] = torch.nan
        assert quantizer.nearest(vectors_with_nan).tolist() == [found[distances][0], -1, found[distances][2]]
    golden_ids = golden("distances")
    assert torch.equal(found["exact"], golden_ids["exact"].long())
    assert (found["bfloat16"] != golden_ids["ids"]).float().mean() <= 1e-3
    assert (found["exact"] != golden_ids["ids"]).float().mean() > 1e-2
    assert LaVITTokenizerConfig().distances == "exact"
