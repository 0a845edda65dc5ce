"""From images to ids and features: the same noise, the same tokens, one wait for the device."""

from __future__ import annotations

import pytest
import release_alike as release
import torch
from host_reads import host_reads
from torch import nn

from lavit import accelerate, restore
from lavit.kernels.dispatch import OPERATIONS

CALLS = {
    "ids": lambda t, x: t.tokenize_image(x),
    "ids with [IMG] and [/IMG]": lambda t, x: t.tokenize_image(x, add_special=True),
    "codes": lambda t, x: t.tokenize_image(x, used_for_llm=False),
    "features": lambda t, x: t.encode_features(x),
}


def model(bias=0.0, width=48):
    """bias: of keeping a patch; 50 keeps all, -50 nothing."""
    torch.manual_seed(2)
    tokenizer = release.Tokenizer(width, depth=3)
    with torch.no_grad():
        tokenizer.token_predictor.out_conv[4].bias[0] = bias
    return tokenizer


def run(tokenizer, call, count=4, grad=False):
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(count, 3, 24, 24, generator=generator)
    torch.manual_seed(9)
    with torch.set_grad_enabled(grad):
        return CALLS[call](tokenizer, images)


@pytest.mark.parametrize("policy", ["exact", "fast"])
@pytest.mark.parametrize("bias", [-50.0, -1.0, 0.0, 50.0])
@pytest.mark.parametrize("call", CALLS)
def test_the_same_seed_gives_the_same_tokens(call, bias, policy):
    tokenizer = model(bias)
    wanted = run(tokenizer, call)
    accelerate(tokenizer, policy)
    found = run(tokenizer, call)
    assert type(found) is type(wanted) and len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        if one.is_floating_point():
            # Rounding in float32 over three blocks; epsilon, 1e-6 of a weight, stays below.
            assert (one - other).norm() <= 1e-4 * other.norm()
        else:
            assert one.equal(other)


@pytest.mark.parametrize("policy", ["exact", "fast"])
def test_the_random_generator_goes_on_from_the_same_place(policy):
    tokenizer = model()
    run(tokenizer, "ids")
    wanted = torch.random.get_rng_state()
    accelerate(tokenizer, policy)
    run(tokenizer, "ids")
    assert torch.random.get_rng_state().equal(wanted)


def gradients(tokenizer):
    tokenizer.zero_grad()
    features = run(tokenizer, "features", grad=True)
    torch.manual_seed(4)
    sum((rows * torch.randn_like(rows)).sum() for rows in features).backward()
    return {name: p.grad for name, p in tokenizer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("learns", [True, False], ids=["the selector learns", "the selector is frozen"])
@pytest.mark.parametrize("policy", ["exact", "fast"])
def test_gradients_reach_the_same_parameters_alike(policy, learns):
    tokenizer = model()
    tokenizer.token_predictor.requires_grad_(learns)
    wanted = gradients(tokenizer)
    assert any(name.startswith("token_predictor") for name in wanted) == learns
    accelerate(tokenizer, policy)
    found = gradients(tokenizer)
    assert set(found) == set(wanted)
    for name, grad in found.items():
        assert (grad - wanted[name]).norm() <= 1e-3 * wanted[name].norm() + 1e-5, name


def test_fast_computes_kept_rows_only_and_exact_all():
    tokenizer = model(-1.0)
    rows = []
    mlp = tokenizer.causal_encoder.blocks[0].mlp
    mlp.fc1.register_forward_hook(lambda layer, args, out: rows.append(out[..., 0].numel()))

    def computed(policy):
        accelerate(tokenizer, policy)
        rows.clear()
        kept = sum(len(ids) for ids in run(tokenizer, "ids"))
        restore(tokenizer)
        return rows[:], kept

    assert computed("exact")[0] == [4 * 36]
    found, kept = computed("fast")
    assert found == [kept] and 0 < kept < 3 * 36


def test_fast_runs_the_hooks_of_blocks_at_the_price_of_all_rows():
    tokenizer = model()
    accelerate(tokenizer, "fast")
    wanted = run(tokenizer, "features")
    seen = []
    tokenizer.causal_encoder.blocks[1].register_forward_hook(lambda *_: seen.append(1))
    found = run(tokenizer, "features")
    assert seen == [1]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, wanted, strict=True))


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("call", ["ids", "features"])
@pytest.mark.parametrize("policy", ["exact", "fast"])
def test_the_host_waits_once_a_batch(policy, call, monkeypatch):
    """By the kernels that a GPU gets: what a CPU has instead of them may read what is in its own memory."""
    for operation in ("varlen_attention", "policy_attention", "nearest_code"):
        if reason := OPERATIONS[operation].implementations["triton"].unusable("cpu"):
            pytest.skip(f"{operation}: {reason}")
    tokenizer = model(width=64)  # heads of 16 columns, which the kernels can take
    with host_reads() as own:
        run(tokenizer, call, 3)
    accelerate(tokenizer, policy, compare=False)
    monkeypatch.setenv("LAVIT_KERNELS", "triton")
    with host_reads() as reads:
        run(tokenizer, call, 3)
    assert reads == ["tolist"] and len(own) > 1


def test_an_encoder_of_another_kind_is_called_as_it_is():
    class Other(nn.Module):
        def forward(self, x, return_all_features=False):
            return x.flatten(2).transpose(1, 2)[:, :37].repeat(1, 1, 16)

    tokenizer = model()
    tokenizer.encoder = Other()
    wanted = run(tokenizer, "ids")
    report = accelerate(tokenizer, "fast")
    assert "tokenizer" in {entry.part for entry in report.replaced}
    assert all(a.equal(b) for a, b in zip(run(tokenizer, "ids"), wanted, strict=True))


@pytest.mark.parametrize("policy", ["exact", "fast"])
def test_under_autocast_selection_is_alike_and_features_are_as_near_as_their_own(policy):
    tokenizer = model()
    precise = run(tokenizer, "features")

    def error():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = run(tokenizer, "features")
        if [len(rows) for rows in rough] != [len(rows) for rows in precise]:
            pytest.skip("bfloat16 decides about a patch otherwise")
        return max(((a.float() - b).norm() / b.norm()).item() for a, b in zip(rough, precise, strict=True))

    own = error()
    accelerate(tokenizer, policy)
    assert error() <= 2 * own
