"""The tokenizer as a whole: golden tokens, what a batch may hold, and what a training step computes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_tensors import assert_within_twice, golden, golden_config, relative, weights
from host_reads import host_reads
from plain_formulas import cast, linear
from plain_formulas import encoder as plain_encoder
from plain_formulas import merger as plain_merger
from torch import Tensor

from lavit.kernels import Ragged
from lavit.kernels.dispatch import OPERATIONS
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig, VisualTokens

TINY: dict[str, Any] = {
    "image_size": 16,
    "hidden_size": 32,
    "encoder_depth": 1,
    "merger_depth": 1,
    "decoder_depth": 1,
    "num_codes": 16,
    "code_dim": 8,
    "projection_dim": 12,
}


def tiny(**overrides: Any) -> LaVITTokenizer:
    torch.manual_seed(0)
    return LaVITTokenizer(LaVITTokenizerConfig.preset("small", **{**TINY, **overrides})).eval()


@cache
def shared() -> LaVITTokenizer:
    return tiny()


def images(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def golden_model(merge: str, dtype: torch.dtype) -> LaVITTokenizer:
    model = LaVITTokenizer(golden_config(merge=merge)).to(dtype).eval()
    faults = model.load_state_dict(weights("tokenizer", "tokenizer."), strict=False)
    assert not faults.unexpected_keys
    assert all(name.startswith(("decoder.", "quantize.")) for name in faults.missing_keys)
    assert "quantize.embedding.weight" not in faults.missing_keys
    return model


# The whole way, against the golden tensors.


@pytest.mark.parametrize(
    ("merge", "dtype", "tolerance"),
    [
        ("dense", torch.float64, 1e-9),
        ("packed", torch.float64, 2e-5),
        ("dense", torch.float32, 1e-5),
        ("packed", torch.float32, 1e-5),
    ],
)
def test_tokens_and_features_equal_golden(merge: str, dtype: torch.dtype, tolerance: float) -> None:
    tensors = golden("tokenizer")
    model, noise = golden_model(merge, dtype), tensors["gumbel_noise"].to(dtype)
    tokens = model.encode(tensors["images"].to(dtype), noise=noise)
    assert tokens.lengths().tolist() == tensors["lengths"].tolist()
    assert torch.equal(tokens.ids + 32002, tensors["token_ids"])
    assert relative(model.quantize.lookup(tokens.ids), tensors["z_q"]) < 1e-6
    features = model.features(tensors["images"].to(dtype), noise=noise)
    assert torch.equal(features.cu_seqlens, tokens.cu_seqlens)
    assert relative(features.values, tensors["llm_embeds"]) < tolerance


@pytest.mark.parametrize("merge", ["dense", "packed"])
def test_bfloat16_error_is_within_twice_that_of_plain_formulas(merge: str) -> None:
    tensors, x = golden("tokenizer"), golden("tokenizer")["images"]
    keep = golden_model("dense", torch.float64).encode(x, noise=tensors["gumbel_noise"]).keep
    w = cast(weights("tokenizer", "tokenizer."), torch.bfloat16)
    part = {p: {k[len(p) + 1 :]: t for k, t in w.items() if k.startswith(p)} for p in ("encoder", "causal_encoder")}
    plain = plain_encoder(part["encoder"], x.bfloat16(), 2, 2, 14)[:, 1:]
    plain = linear(w, "vit_proj", plain_merger(part["causal_encoder"], plain, keep, 2, 2))[keep]
    # Noise that leaves no doubt: a flipped choice is not what is measured here.
    noise = torch.stack((keep * 100.0, ~keep * 100.0), dim=-1)
    out = golden_model(merge, torch.bfloat16).features(x.bfloat16(), noise=noise)
    assert_within_twice(out.values, plain, tensors["llm_embeds"])
    with torch.autocast("cpu", torch.bfloat16):
        out = golden_model(merge, torch.float32).features(x.float(), noise=noise)
    assert_within_twice(out.values, plain, tensors["llm_embeds"])


# Tokens.


def test_seeds_make_tokens_independent_of_the_batch() -> None:
    x, seeds = images(5), torch.tensor([7, -3, 2**40, 7, 0])
    together = shared().encode(x, seeds=seeds)
    for i, ids in enumerate(together.ragged().unbind()):
        alone = shared().encode(x[i : i + 1], seeds=[int(seeds[i])])
        assert torch.equal(alone.ids, ids) and torch.equal(alone.keep[0], together.keep[i])


def test_global_seed_governs_and_deterministic_needs_none() -> None:
    def twice(**how: Any) -> tuple[Tensor, Tensor]:
        return shared().encode(images(8), **how).keep, shared().encode(images(8), **how).keep

    torch.manual_seed(3)
    a, b = twice()
    torch.manual_seed(3)
    assert torch.equal(shared().encode(images(8)).keep, a) and not torch.equal(a, b)
    assert torch.equal(*twice(deterministic=True))


def test_token_counts_follow_the_mask_and_min_keep() -> None:
    tokens = shared().encode(images(6), seeds=range(6))
    assert tokens.ids.dtype == torch.int64 and tokens.cu_seqlens.dtype == torch.int32
    assert tokens.keep.dtype == torch.bool
    assert torch.equal(tokens.lengths(), tokens.keep.sum(1).int())
    assert tokens.ids.min() >= 0 and tokens.ids.max() < 16
    model = tiny(min_keep=3)
    model.token_predictor.out_conv[-1].bias.data = torch.tensor([-100.0, 100.0])
    assert model.encode(images(4)).lengths().tolist() == [3] * 4


def test_images_and_their_features_give_the_same_tokens() -> None:
    model = shared()
    features = model.encode_features(images(3))
    assert not features.requires_grad
    a, b = model.encode(images(3), seeds=range(3)), model.encode(features=features, seeds=range(3))
    assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def test_scaled_noise_is_the_choice_with_that_noise() -> None:
    """keep iff s0 + c g0 >= s1 + c g1, with the relaxed probability at the given temperature; 0 is deterministic."""
    model, features = shared(), shared().encode_features(images(4))
    noise = -torch.empty(4, 16, 2).exponential_().log()
    scores = model.token_predictor(features + model.feature_position)
    shifted = scores + 0.3 * noise
    selection = model.select(features, noise=noise, noise_scale=0.3, tau=0.7)
    assert torch.equal(selection.keep > 0.5, shifted[..., 0] >= shifted[..., 1])
    torch.testing.assert_close(selection.prob, (shifted / 0.7).softmax(-1)[..., 0])
    still = model.select(features, noise_scale=0.0, tau=0.7)
    assert torch.equal(still.keep, model.select(features, deterministic=True).keep)
    torch.testing.assert_close(still.prob, (scores / 0.7).softmax(-1)[..., 0])


def test_decode_takes_tokens_ids_and_codes() -> None:
    model = shared()
    tokens = model.encode(images(3), seeds=range(3))
    out = model.decode(tokens)
    assert out.shape == (3, 16, 32)
    codes = tokens.ragged().with_values(model.quantize.lookup(tokens.ids))
    assert torch.equal(model.decode(tokens.ragged()), out) and torch.equal(model.decode(codes), out)


def test_decode_refuses_ids_that_are_no_codes() -> None:
    for ids in ([0, 16], [-1, 3]):
        with pytest.raises(ValueError, match=r"tokens: expected ids in \[0, 16\), got"):
            shared().decode(Ragged(torch.tensor(ids), torch.tensor([0, 2], dtype=torch.int32), 2))


# Input that is not as it should be.


def test_empty_batch_gives_empty_results() -> None:
    model = shared()
    tokens = model.encode(images(0))
    assert tokens.ids.shape == (0,) and tokens.cu_seqlens.tolist() == [0] and tokens.keep.shape == (0, 16)
    assert model.features(images(0)).values.shape == (0, 12)
    assert model.decode(tokens).shape == (0, 16, 32)
    assert model(images(0)).loss == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_pixels_are_named(value: float) -> None:
    x = images(4)
    x[2, 1, 5, 5] = value
    for method in (shared().encode, shared().features):
        with pytest.raises(ValueError, match=r"images: expected finite values, got NaN or Inf in batch entries \[2\]"):
            method(x)


def test_bad_features_are_named() -> None:
    features = torch.zeros(2, 16, 32)
    features[1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"features: expected finite values, got NaN or Inf in batch entries \[1\]"):
        shared().encode(features=features)


def test_wrong_arguments_are_named() -> None:
    model = shared()
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 3, 16, 16\), got \(2, 1, 16, 16\)"):
        model.encode(torch.zeros(2, 1, 16, 16))
    with pytest.raises(ValueError, match=r"features: expected shape \(B, 16, 32\), got \(2, 9, 32\)"):
        model.encode(features=torch.zeros(2, 9, 32))
    with pytest.raises(ValueError, match="images, features: expected exactly one of them, got both"):
        model(images(1), features=torch.zeros(1, 16, 32))
    with pytest.raises(ValueError, match="images, features: expected exactly one of them, got none"):
        model.encode()
    with pytest.raises(ValueError, match="seeds"):
        model.encode(images(2), seeds=[1])
    with pytest.raises(TypeError, match=r"seeds: expected integers, got 1\.5 at place 1"):
        model.encode(images(2), seeds=[1, 1.5])
    with pytest.raises(ValueError, match="noise_scale: expected a number of at least 0, got -1"):
        model.select(torch.zeros(1, 16, 32), noise_scale=-1)


def test_nan_in_training_gives_a_nan_loss_and_spares_the_codebook() -> None:
    model, x = tiny().train(), images(4)
    x[1] = torch.nan
    assert model(x).loss.isnan()
    assert model.quantize.codebook().isfinite().all()
    assert model(images(4)).loss.isfinite()


# A training step.


def test_losses_are_the_formulas() -> None:
    model = tiny(ratio_low=0.9, ratio_high=1.2, keep_rate=0.4)
    features = model.encode_features(images(6))
    out = model(features=features, seeds=range(6))
    rates = out.selection.keep.mean(1)
    below, above = (0.36 - rates).clamp(min=0), (rates - 0.48).clamp(min=0)
    ratio = (0.4 - rates.mean()) ** 2 + below.square().mean() + above.square().mean()
    torch.testing.assert_close(out.ratio_loss, ratio)
    decoded = model.decode(VisualTokens(out.ids, out.cu_seqlens, out.selection.keep))
    cosine = F.cosine_similarity(decoded, features, dim=-1)
    torch.testing.assert_close(out.reconstruction_loss, 1 - cosine.mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.loss, out.reconstruction_loss + 2 * ratio + out.commitment_loss)
    torch.testing.assert_close(out.keep_rate, rates.mean())
    per_image = tiny(ratio_scope="image", keep_rate=0.4)(features=features, seeds=range(6))
    torch.testing.assert_close(per_image.ratio_loss, (0.4 - rates).square().mean())


@pytest.mark.parametrize("quantize", [True, False])
@pytest.mark.parametrize("gradient", ["packed", "exact"])
def test_every_trained_part_gets_a_gradient(gradient: str, quantize: bool) -> None:
    model = tiny(selector_gradient=gradient).train()
    model(images(8), quantize=quantize).loss.backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    idle = {n for n, _ in model.named_parameters() if n.startswith(("encoder.", "vit_proj.", "quantize."))}
    idle |= {"causal_encoder.blocks.0.token_cross_attn.key.bias", "decoder.blocks.0.cross_attn.key.bias"}
    assert without <= idle
    assert not any(p.requires_grad for p in model.encoder.parameters())


def test_both_selector_gradients_compute_the_same_forward() -> None:
    packed, exact = tiny().train(), tiny(selector_gradient="exact").train()
    exact.load_state_dict(packed.state_dict())
    a, b = packed(images(6), seeds=range(6)), exact(images(6), seeds=range(6))
    assert torch.equal(a.ids, b.ids) and torch.equal(a.cu_seqlens, b.cu_seqlens)
    torch.testing.assert_close(a.reconstruction, b.reconstruction, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.commitment_loss, b.commitment_loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(packed.quantize.codebook(), exact.quantize.codebook(), rtol=1e-4, atol=1e-4)
    for out in (a, b):
        out.loss.backward()
    first = [m.token_predictor.out_conv[-1].weight.grad for m in (packed, exact)]
    assert not torch.allclose(*first), "the exact gradient also knows what the other choice would have changed"


def test_a_frozen_selector_costs_no_mask_gradient() -> None:
    model = tiny().train()
    model.token_predictor.requires_grad_(False)
    out = model(images(4))
    assert not out.selection.keep.requires_grad
    out.loss.backward()


def test_standardised_features_have_the_given_statistics() -> None:
    model, plain = tiny(), tiny(standardize_features=False)
    raw = plain.encode_features(images(64))
    model.set_feature_statistics(raw.mean(0), raw.std(0))
    features = model.encode_features(images(64))
    torch.testing.assert_close(features.mean(0), torch.zeros(16, 32), rtol=0, atol=1e-4)
    torch.testing.assert_close(features.std(0), torch.ones(16, 32), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match=r"mean: expected shape \(16, 32\), got \(32,\)"):
        model.set_feature_statistics(raw.mean((0, 1)), raw.std(0))
    with pytest.raises(RuntimeError, match="standardize_features=False"):
        plain.set_feature_statistics(raw.mean(0), raw.std(0))


def test_it_learns() -> None:
    """Thirty steps on one batch lower the reconstruction loss and use several codes."""
    model, features = tiny().train(), torch.randn(16, 16, 32)
    model.quantize.initialize(model.latents(features=features).values.detach())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(30):
        out = model(features=features, seeds=range(step, step + 16))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.reconstruction_loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert (model.quantize.usage() > 0).sum() > 8


@pytest.mark.parametrize("call", ["encode", "features", "latents"])
@pytest.mark.parametrize("merge", ["dense", "packed"])
def test_the_host_reads_the_device_once(merge: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, by the kernels that a GPU gets: what it has instead of them may read what is in its own memory."""
    for operation in ("varlen_attention", "policy_attention", "gumbel_select", "nearest_code"):
        if reason := OPERATIONS[operation].implementations["triton"].unusable("cpu"):
            pytest.skip(f"{operation}: {reason}")
    monkeypatch.setenv("LAVIT_KERNELS", "triton")
    model = tiny(merge=merge)
    with host_reads() as reads:
        getattr(model, call)(images(3), seeds=torch.arange(3))
    assert len(reads) <= 1, reads


def test_decoding_codes_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := OPERATIONS["varlen_attention"].implementations["triton"].unusable("cpu"):
        pytest.skip(reason)
    monkeypatch.setenv("LAVIT_KERNELS", "triton")
    latents = shared().latents(images(2), seeds=torch.arange(2))
    with host_reads() as reads:
        shared().decode(latents)
    assert reads == []


@pytest.mark.gpu
def test_encode_waits_for_the_device_once() -> None:
    model, x = tiny().cuda(), images(8).cuda()
    model.encode(x, seeds=torch.arange(8, device="cuda"))
    with pytest.warns(UserWarning, match="synchronizing") as caught:
        torch.cuda.set_sync_debug_mode("warn")
        model.encode(x, seeds=torch.arange(8, device="cuda"))
        torch.cuda.set_sync_debug_mode("default")
    assert len(caught) == 1


@pytest.mark.gpu
def test_cpu_and_gpu_give_the_same_tokens() -> None:
    model = tiny()
    here = model.encode(images(8), seeds=range(8))
    there = model.cuda().encode(images(8).cuda(), seeds=range(8))
    assert torch.equal(here.keep, there.keep.cpu())
    assert (here.ids == there.ids.cpu()).float().mean() > 0.95
