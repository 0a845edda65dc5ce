"""Laws of the statistics: they add up, and do not depend on how the images were divided into batches."""

import numpy as np
import pytest
import torch

from lavit.evaluation.token_statistics import tokenize_and_decode, tokens_by_objects
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig


@pytest.fixture
def tokenizer() -> LaVITTokenizer:
    config = LaVITTokenizerConfig.preset(
        "small", hidden_size=32, encoder_depth=1, merger_depth=1, decoder_depth=1, patch_size=8, num_codes=20
    )
    return LaVITTokenizer(config).eval()


def test_counts_lengths_and_masks_agree(tokenizer):
    features = torch.randn(7, 16, 32)
    found = tokenize_and_decode(tokenizer, features, batch_size=3)
    assert np.array_equal(found.keep.sum(1), found.tokens)
    assert found.code_counts.sum() == found.tokens.sum()
    assert found.codes_used == len(tokenizer.encode(features=features, deterministic=True).ids.unique())
    assert found.decoded.shape == features.shape


def test_the_batch_size_changes_nothing(tokenizer):
    features = torch.randn(7, 16, 32)
    whole, parts = (tokenize_and_decode(tokenizer, features, batch_size=n) for n in (7, 2))
    assert np.array_equal(whole.keep, parts.keep)
    assert np.array_equal(whole.code_counts, parts.code_counts)
    torch.testing.assert_close(whole.decoded, parts.decoded, rtol=1e-4, atol=1e-5)


def test_cosines_are_those_of_the_decoded_features(tokenizer):
    features = torch.randn(3, 16, 32)
    found = tokenize_and_decode(tokenizer, features)
    unit, other = (x / x.norm(dim=-1, keepdim=True) for x in (features, found.decoded))
    torch.testing.assert_close(torch.from_numpy(found.cosines), (unit * other).sum(-1).mean(1))


def test_tokens_are_grouped_by_the_number_of_objects():
    assert tokens_by_objects(np.array([2, 1, 2]), np.array([9, 4, 8])) == {1: [4], 2: [9, 8]}


def test_errors_name_the_argument(tokenizer):
    with pytest.raises(ValueError, match="features.*none"):
        tokenize_and_decode(tokenizer, torch.empty(0, 16, 32))
    with pytest.raises(ValueError, match="tokens.*3 images.*got 2"):
        tokens_by_objects(np.zeros(3), np.zeros(2))
