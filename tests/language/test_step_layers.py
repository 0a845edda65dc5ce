import pytest
import torch
from tiny_llama import VOCABULARY, prompts, tiny_llama
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from lavit.language import step_layers as module
from lavit.language.guidance import SamplingSettings
from lavit.language.sampling import sample_image_tokens
from lavit.language.step_layers import is_plain, step_layers

SETTINGS = SamplingSettings(guidance=3.0, top_k=9, min_tokens=3, max_tokens=14)
EPS = torch.finfo(torch.float64).eps


class Adapted(nn.Linear):
    """As an adapter: a product with something added to it."""

    def forward(self, x):
        return super().forward(x) + 0.1 * x.sum(-1, keepdim=True)


def sample(model, seed=0):
    found = sample_image_tokens(model, VOCABULARY, prompts(5, 9), SETTINGS, seeds=[seed, seed + 1], max_codes=16)
    return [x.tolist() for x in found.unbind()]


def own_parts(layer, x):
    """q, k and v side by side, and the output of the MLP, by the modules themselves."""
    attention = layer.self_attn
    return torch.cat([p(x) for p in (attention.q_proj, attention.k_proj, attention.v_proj)], dim=-1), layer.mlp(x)


@pytest.mark.parametrize("limit", [0, 2**28], ids=["apart", "joined"])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_the_parts_equal_the_layers_own(monkeypatch, limit, bias):
    monkeypatch.setattr(module, "JOINED_BYTES", limit)
    model = tiny_llama(key_heads=1)
    x = torch.randn(3, 32, dtype=torch.float64)
    if bias:
        for layer in model.model.layers:
            for linear in layer.modules():
                if isinstance(linear, nn.Linear):
                    linear.bias = nn.Parameter(torch.randn(linear.out_features, dtype=torch.float64))
    for layer, parts in zip(model.model.layers, step_layers(model.model), strict=True):
        qkv, mlp = own_parts(layer, x)
        # 32 and 48 products a sum, of values of order 10
        torch.testing.assert_close(parts.qkv(x), qkv, rtol=0, atol=1000 * EPS)
        torch.testing.assert_close(parts.mlp(x), mlp, rtol=0, atol=10000 * EPS)
        torch.testing.assert_close(parts.out(x), layer.self_attn.o_proj(x), rtol=0, atol=1000 * EPS)


class Copies(TorchDispatchMode):
    """Counts the operations that copy."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func in (torch.ops.aten.cat.default, torch.ops.aten.clone.default, torch.ops.aten.copy_.default)
        return func(*args, **(kwargs or {}))


def test_a_model_beyond_the_bound_has_no_second_copy_of_its_weights(monkeypatch):
    model = tiny_llama().model
    bytes_joined = 8 * 2 * (32 * (32 + 16 + 16) + 32 * 2 * 48)
    for bound, copies in ((bytes_joined, True), (bytes_joined - 1, False)):
        monkeypatch.setattr(module, "JOINED_BYTES", bound)
        with Copies() as made, torch.no_grad():
            step_layers(model)
        assert bool(made.number) == copies


@pytest.mark.parametrize("name", ["self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "mlp"])
def test_what_is_hooked_is_called(name):
    model, called = tiny_llama(), []
    plain = sample(model)
    model.model.layers[1].get_submodule(name).register_forward_hook(lambda *_: called.append(1))
    assert sample(model) == plain
    called.clear()
    sample(model)
    assert len(called) >= SETTINGS.min_tokens  # for the prompts and for every token but the last


@pytest.mark.parametrize("name", ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"])
@torch.no_grad()
def test_an_adapted_projection_does_what_it_does(name):
    model = tiny_llama()
    layer = model.model.layers[0]
    part = layer.mlp if hasattr(layer.mlp, name) else layer.self_attn
    adapted = Adapted(getattr(part, name).in_features, getattr(part, name).out_features, bias=False).double()
    adapted.load_state_dict(getattr(part, name).state_dict())
    setattr(part, name, adapted)
    x = torch.randn(3, 32, dtype=torch.float64)
    parts, (qkv, mlp) = step_layers(model.model)[0], own_parts(layer, x)
    assert not is_plain(adapted)
    torch.testing.assert_close(parts.qkv(x), qkv, rtol=0, atol=1000 * EPS)
    torch.testing.assert_close(parts.mlp(x), mlp, rtol=0, atol=10000 * EPS)
    torch.testing.assert_close(parts.out(x), layer.self_attn.o_proj(x), rtol=0, atol=1000 * EPS)


def test_generation_after_a_training_step_reads_the_new_weights():
    model = tiny_llama()
    before = sample(model)
    with torch.no_grad():
        for p in model.model.layers.parameters():
            p.mul_(0.5)
    assert sample(model) != before
    fresh = tiny_llama()
    fresh.load_state_dict(model.state_dict())
    assert sample(model) == sample(fresh)


def test_a_model_that_has_generated_is_saved_and_trained_as_before(tmp_path):
    model = tiny_llama(torch.float32)
    parameters = {name: (id(p), p.data_ptr(), p.shape) for name, p in model.named_parameters()}
    drawn = sample(model)
    assert {name: (id(p), p.data_ptr(), p.shape) for name, p in model.named_parameters()} == parameters
    model.save_pretrained(tmp_path)
    assert sample(LlamaForCausalLM.from_pretrained(tmp_path)) == drawn
    model.train()
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    assert all(p.grad is not None for p in model.model.layers.parameters())


@torch.no_grad()
def test_under_autocast_joined_weights_are_cast_once():
    model = tiny_llama(torch.float32)
    x = torch.randn(3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        parts = step_layers(model.model)[0]
        found, expected = parts.qkv(x), own_parts(model.model.layers[0], x)[0]
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(torch.bfloat16).eps, atol=1e-6)
    assert parts.qkv.keywords["mat2"].dtype == torch.bfloat16
