"""Images as features and codes in one batch: each as if it were alone, selected once, with gradient where it learns."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny_lavit import images, tokenizer
from torch import Tensor

from lavit.language.continuous_features import ImageRows, Understanding, image_rows
from lavit.tokenizer import LaVITTokenizer

WIDTH = 24


def understanding(source: LaVITTokenizer) -> Understanding:
    torch.manual_seed(2)
    made = Understanding(source.config, WIDTH).eval()
    made.start_from(source)
    return made


def flags(*names: str) -> tuple[Tensor, Tensor]:
    """as_codes, as_features from "c", "f" and "cf"."""
    return torch.tensor(["c" in name for name in names]), torch.tensor(["f" in name for name in names])


@pytest.mark.parametrize("merge", ["packed", "dense"])
def test_it_starts_as_the_tokenizers_own_merger_and_projection(merge: str) -> None:
    source = tokenizer(projection_dim=WIDTH, merge=merge)
    got = image_rows(source, understanding(source), *flags("f", "f"), images=images(2), deterministic=True)
    wanted = source.features(images(2), deterministic=True)
    torch.testing.assert_close(got.features, wanted.values)
    assert got.lengths.tolist() == wanted.lengths().tolist()


def test_without_a_projection_in_the_tokenizer_the_projector_is_new() -> None:
    source = tokenizer(projection_dim=None)
    got = image_rows(source, understanding(source), *flags("f"), images=images(1), deterministic=True)
    assert got.features is not None and got.features.shape == (int(got.lengths.sum()), WIDTH)


def test_a_mixed_batch_is_each_image_alone() -> None:
    source = tokenizer()
    reader, x, seeds = understanding(source).double(), images(4), torch.arange(4) + 5
    wanted = flags("c", "f", "cf", "c")
    mixed = image_rows(source.double(), reader, *wanted, images=x.double(), seeds=seeds)
    single = []
    for i in range(4):
        one = slice(i, i + 1)
        single.append(image_rows(source, reader, *(w[one] for w in wanted), images=x[one].double(), seeds=seeds[one]))
    assert mixed.lengths.tolist() == [int(s.lengths) for s in single]
    assert torch.equal(mixed.codes, torch.cat([s.codes for s in single]))
    torch.testing.assert_close(mixed.features, torch.cat([s.features for s in single if s.features is not None]))
    torch.testing.assert_close(mixed.merged, torch.cat([s.merged for s in single if s.merged is not None]))
    image = torch.arange(4).repeat_interleave(mixed.lengths)
    assert mixed.feature_places is not None and mixed.merged_places is not None
    assert image[mixed.feature_places].unique().tolist() == [1, 2]
    assert image[mixed.merged_places].unique().tolist() == [0, 2, 3]
    assert not mixed.codes[image == 1].any()
    encoded = source.encode(x.double(), seeds=seeds)
    assert torch.equal(mixed.codes[image != 1], encoded.ids[image != 1])


def test_given_tokens_give_the_same_rows_without_selecting_again() -> None:
    source = tokenizer()
    reader, features = understanding(source), source.encode_features(images(3))
    tokens = source.encode(features=features, seeds=torch.arange(3))
    chosen = image_rows(source, reader, *flags("c", "f", "cf"), features=features, seeds=torch.arange(3))
    given = image_rows(source, reader, *flags("c", "f", "cf"), features=features.half(), tokens=tokens)
    torch.testing.assert_close(given.features, chosen.features, rtol=0, atol=2**-7)
    assert torch.equal(given.feature_places, chosen.feature_places) and torch.equal(given.codes, tokens.ids)
    codes_only = image_rows(source, reader, *flags("c", "c", "c"), tokens=tokens)
    assert torch.equal(codes_only.codes, tokens.ids) and codes_only.features is None


def test_only_merger_and_projector_get_a_gradient() -> None:
    source = tokenizer()
    source.feature_position.requires_grad_(True)
    reader = understanding(source)
    rows = image_rows(source, reader, *flags("f", "cf"), images=images(2), seeds=torch.arange(2))
    assert rows.features is not None and rows.merged is not None and not rows.merged.requires_grad
    (rows.features**3).sum().backward()
    assert not any(p.grad is not None for p in source.parameters())
    # A key's bias moves all logits of a query alike.
    assert {n for n, p in reader.named_parameters() if p.grad is None or not p.grad.any()} <= {
        "causal_encoder.blocks.0.token_cross_attn.key.bias"
    }


def test_no_image_and_an_image_without_tokens_are_nothing() -> None:
    source = tokenizer(min_keep=0)
    reader = understanding(source)
    none = torch.zeros(0, dtype=torch.bool)
    rows = image_rows(source, reader, none, none, images=images(0))
    assert rows == ImageRows(rows.lengths, rows.codes) and rows.codes.shape == (0,)
    noise = torch.zeros(2, 16, 2)
    noise[0, :, 1], noise[1, :, 0] = 1e3, 1e3
    rows = image_rows(source, reader, *flags("cf", "cf"), images=images(2), noise=noise)
    assert rows.lengths.tolist() == [0, 16] and rows.features is not None and rows.features.isfinite().all()


def test_wrong_arguments_are_named() -> None:
    source = tokenizer()
    reader, one = understanding(source), flags("f", "c")
    tokens = source.encode(images(2), deterministic=True)
    with pytest.raises(ValueError, match="images, features: expected one of them, got none"):
        image_rows(source, reader, *one, tokens=tokens)
    with pytest.raises(ValueError, match="images: expected 2, one for each segment of an image, got 3"):
        image_rows(source, reader, *one, images=images(3))
    with pytest.raises(ValueError, match=r"features: expected shape \(2, 16, 32\), got \(2, 16, 31\)"):
        image_rows(source, reader, *one, features=torch.zeros(2, 16, 31))
    with pytest.raises(ValueError, match="images, features: expected at most one of them, got both"):
        image_rows(source, reader, *one, images=images(2), features=torch.zeros(2, 16, 32))
    with pytest.raises(ValueError, match="tokens: expected those of 1 images, .*, got 2"):
        image_rows(source, reader, *flags("c"), tokens=tokens)
    with pytest.raises(ValueError, match=r"tokens.keep: expected shape \(2, 16\), got \(2, 15\)"):
        image_rows(source, reader, *flags("c", "c"), tokens=tokens._replace(keep=tokens.keep[:, 1:]))
    bad = images(2)
    bad[1, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match=r"images: expected finite values, got NaN or Inf in batch entries \[1\]"):
        image_rows(source, reader, *one, images=bad)
    with pytest.raises(RuntimeError, match="ln_vision.weight"):
        understanding(source).start_from(tokenizer(hidden_size=64))


@pytest.mark.gpu
@pytest.mark.parametrize("given", ["features", "tokens"])
def test_the_host_waits_once_or_for_given_tokens_not_at_all(given: str) -> None:
    source = tokenizer().cuda()
    reader = understanding(source).cuda()
    features = source.encode_features(images(3).cuda())
    seeds = torch.arange(3).cuda()
    arguments = {"features": features, "seeds": seeds}
    if given == "tokens":
        arguments = {"features": features, "tokens": source.encode(features=features, seeds=seeds).to("cpu")}
    image_rows(source, reader, *flags("c", "f", "cf"), **arguments)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            image_rows(source, reader, *flags("c", "f", "cf"), **arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in caught if "synchronizing" in str(w.message)]) == (given == "features")
