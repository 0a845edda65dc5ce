"""Every part beside the module that it is recognised in: values, gradients, both policies."""

from __future__ import annotations

import copy

import pytest
import release_alike as release
import torch
from torch import nn

from lavit import accelerate, restore

EPS64 = torch.finfo(torch.float64).eps
WIDTH, HEADS = 48, 4


def keep_mask(batch=5, patches=36, dtype=torch.float64):
    """Random, but image 1 keeps all, image 2 nothing and image 3 one patch."""
    keep = (torch.rand(5, patches) < 0.4).to(dtype)
    keep[1], keep[2], keep[3] = 1, 0, 0
    keep[3, 17] = 1
    return keep[:batch]


def parts():
    """Name, module, inputs; every floating input is to have a gradient."""
    x, origin = torch.randn(5, 36, WIDTH), torch.randn(5, 36, WIDTH)
    codes, lengths = torch.randn(9, release.CODE_DIM), torch.tensor([4, 0, 5])
    mask = (torch.arange(7) < torch.tensor([[7], [3], [0], [1], [5]])).double()
    bias, seen = torch.randn(5, 1, 36, 36), torch.rand(5, 36) < 0.7
    eva = release.EvaAttention(WIDTH, HEADS)
    return {
        "encoder attention": (eva, (x,)),
        "encoder attention, biased": (copy.deepcopy(eva), (x, bias, seen)),
        "encoder attention, masked": (copy.deepcopy(eva), (x, None, seen)),
        "selector": (release.Selector(WIDTH), (x, torch.rand(5, 36, 1))),
        "causal": (release.CausalAttention(WIDTH, HEADS), (x, keep_mask())),
        "cross": (release.CrossAttention(WIDTH, HEADS), (x, origin, keep_mask())),
        "merger": (release.Merger(WIDTH, HEADS, 2), (x, keep_mask())),
        "decoder self-attention": (release.DecoderSelfAttention(WIDTH, HEADS), (x,)),
        "decoder cross-attention": (release.DecoderCrossAttention(WIDTH, HEADS), (x, origin[:, :7], mask)),
        "low-resolution decoder": (release.Decoder("lowres"), (codes, lengths)),
        "high-resolution decoder": (release.Decoder("highres"), (codes, lengths)),
    }


PARTS = list(parts())


def prepared(name):
    torch.manual_seed(3)
    module, inputs = parts()[name]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)  # no bias is zero
    return module.double(), [x.double() if x is not None and x.is_floating_point() else x for x in inputs]


def results(module, inputs):
    """Outputs, then gradients of a fixed functional of them to floating inputs and parameters."""
    given = [x.clone().requires_grad_() if x is not None and x.is_floating_point() else x for x in inputs]
    out = module(*given)
    out = list(out) if isinstance(out, tuple) else [out]
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in out)
    leaves = [x for x in given if x is not None and x.is_floating_point()] + list(module.parameters())
    return out, torch.autograd.grad(loss, leaves, allow_unused=True)


def assert_near(found, wanted, allowed):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.shape == other.shape and one.dtype == other.dtype
            # A sum of n terms is off by n roundings at most; a gradient may be 0 up to the rounding of its terms.
            assert (one - other).norm() <= allowed * other.norm() + allowed


@pytest.mark.parametrize("name", PARTS)
def test_exact_gives_the_own_values_and_gradients_to_rounding(name):
    module, inputs = prepared(name)
    wanted = results(module, inputs)
    accelerate(module, "exact")
    found = results(module, inputs)
    for one, other in zip(found, wanted, strict=True):
        assert_near(one, other, 4096 * EPS64)


@pytest.mark.parametrize("name", ["causal", "cross", "merger"])
def test_fast_is_the_formula_without_epsilon(name, monkeypatch):
    module, inputs = prepared(name)
    accelerate(module, "fast")
    found, _ = results(module, inputs)
    restore(module)
    # The limit of the release's formula: an image without a key gets the mean of all, which is what epsilon leaves.
    own = release.weighted
    monkeypatch.setattr(release, "weighted", lambda scores, seen: own(scores, seen, eps=1e-200))
    assert_near(found, results(module, inputs)[0], 4096 * EPS64)


def test_fast_is_near_the_release_where_epsilon_does_not_leak():
    module, inputs = prepared("merger")
    wanted, _ = results(module, inputs)
    accelerate(module, "fast")
    found, _ = results(module, inputs)
    assert_near(found, wanted, 1e-4)  # epsilon is 1e-6, and a row's largest weight is 1


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("policy", ["exact", "fast"])
def test_restore_gives_the_same_bits_again(name, policy):
    module, inputs = prepared(name)
    kind = {path: type(m) for path, m in module.named_modules()}
    wanted = results(module, inputs)
    accelerate(module, policy)
    restore(module)
    assert {path: type(m) for path, m in module.named_modules()} == kind
    for one, other in zip(results(module, inputs), wanted, strict=True):
        assert all(a is b is None or a.equal(b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", PARTS)
def test_under_autocast_the_error_is_that_of_the_module_itself(name):
    module, inputs = prepared(name)
    wanted, _ = results(module, inputs)
    small = copy.deepcopy(module).float()
    given = [x.float() if x is not None and x.is_floating_point() else x for x in inputs]

    def error():
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            out = small(*given)
        out = out if isinstance(out, tuple) else (out,)
        return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(out, wanted, strict=True)]

    own = error()
    accelerate(small, "exact")
    assert all(new <= 2 * old + torch.finfo(torch.bfloat16).eps for new, old in zip(error(), own, strict=True))


def test_quantizer_gives_the_own_ids_codes_and_gradient():
    quantizer = release.Quantizer(200, 8)
    with torch.no_grad():
        quantizer.embedding.weight.mul_(torch.rand(200, 1) + 0.5)  # stored codes are used as they are
    z = torch.randn(3, 41, 8)

    def run():
        quantizer.zero_grad()
        codes, ids = quantizer.tokenize(z)
        codes.square().sum().backward()
        return codes.detach(), ids, quantizer.embedding.weight.grad

    wanted = run()
    for policy in ("exact", "fast"):
        accelerate(quantizer, policy)
        assert all(a.equal(b) for a, b in zip(run(), wanted, strict=True))
        restore(quantizer)


def test_exact_quantizer_takes_products_in_the_precision_of_autocast():
    quantizer = release.Quantizer(4096, 8)
    z = torch.randn(500, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = quantizer.tokenize(z)[1]
        accelerate(quantizer, "exact")
        assert quantizer.tokenize(z)[1].equal(own)
        restore(quantizer)
        accelerate(quantizer, "fast")
        fast = quantizer.tokenize(z)[1]
    restore(quantizer)
    assert fast.equal(quantizer.tokenize(z)[1])
    assert not own.equal(fast)


def test_quantizer_takes_the_first_code_for_nan_and_none_for_no_rows():
    quantizer = release.Quantizer(16, 8)
    z = torch.full((2, 8), torch.nan)
    own = quantizer.tokenize(z)[1]
    accelerate(quantizer)
    assert quantizer.tokenize(z)[1].equal(own)
    assert quantizer.tokenize(torch.zeros(0, 8))[1].shape == (0,)


def test_an_image_without_codes_sees_padding_as_in_the_release():
    decoder = release.Decoder("highres")
    codes, lengths = torch.zeros(0, release.CODE_DIM), torch.tensor([0, 0])
    wanted = decoder(codes, lengths)
    accelerate(decoder)
    found = decoder(codes, lengths)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, wanted, strict=True))


def test_a_training_step_moves_the_same_parameters_alike():
    torch.manual_seed(5)
    one = release.Merger(WIDTH, HEADS, 2).double()
    other = copy.deepcopy(one)
    x, keep = torch.randn(3, 36, WIDTH, dtype=torch.float64), keep_mask(3)
    steps = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (one, other)]
    accelerate(other, "exact")
    for _ in range(3):
        for model, step in zip((one, other), steps, strict=True):
            step.zero_grad()
            model(x, keep).square().mean().backward()
            step.step()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        # Adam divides by the gradient's size, so that where it is tiny roundings grow.
        assert torch.allclose(a, b, rtol=0, atol=1e-7)


def test_linear_layers_with_hooks_still_run_them():
    merger = release.Merger(WIDTH, HEADS, 1)
    seen = []
    merger.blocks[0].token_causal_attn.qkv.register_forward_hook(lambda *_: seen.append("qkv"))
    merger.blocks[0].register_forward_hook(lambda *_: seen.append("block"))
    accelerate(merger, "fast")
    seen.clear()
    merger(torch.randn(2, 36, WIDTH), keep_mask(2, dtype=torch.float32))
    assert seen == ["qkv", "block"]


def test_replaced_dropout_with_a_hook_is_left():
    attention = release.CausalAttention(WIDTH, HEADS)
    attention.attn_drop.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="attn_drop: has a hook"):
        accelerate(nn.ModuleList([attention]))
