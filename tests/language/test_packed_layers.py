"""The layers over packed rows with fewer calls: transformers' results, and where they step aside."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lavit.kernels.extension import cpp_unusable
from lavit.language import attention, packed_layers

pytestmark = pytest.mark.skipif(cpp_unusable("cpu") is not None, reason=str(cpp_unusable("cpu")))
SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
LENGTHS = [5, 1, 17, 0, 9]


def model(dtype=torch.float64, **changes) -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(**{**SIZES, "vocab_size": 11, "initializer_range": 0.3, **changes})
    config._attn_implementation = attention.NAME
    made = LlamaModel(config).to(dtype).train()
    for name, parameter in made.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return made


def packed(dtype=torch.float64):
    cu = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    positions = torch.cat([torch.arange(n) for n in LENGTHS])
    rows = torch.randn(int(cu[-1]), 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    return rows, positions, cu, max(LENGTHS)


def theirs(made, rows, positions, cu, longest):
    arguments = attention.packed_arguments(cu, longest)
    return made(inputs_embeds=rows[None], position_ids=positions[None], **arguments).last_hidden_state[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2}, {"attention_bias": True, "mlp_bias": True}])
def test_states_and_all_gradients_are_those_of_transformers(monkeypatch, dtype, tolerance, changes):
    """float64 to 1e-10, with norms that do not round to float32; float32 to the rounding of two layers."""

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))

    if dtype == torch.float64:
        monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    made = model(dtype, **changes)
    rows, *places = packed(dtype)
    found = []
    for run in (theirs, packed_layers.hidden_states):
        leaf = rows.clone().requires_grad_()
        out = run(made, leaf, *places)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        parameters = {name: p for name, p in made.named_parameters() if "embed" not in name}
        found.append([out, *torch.autograd.grad(out, [leaf, *parameters.values()], grad)])
    assert packed_layers.can_take(made, rows) == (dtype == torch.float32)
    for a, b in zip(*found, strict=True):
        assert float((a - b).detach().norm()) <= tolerance * float(b.detach().norm())


def test_what_somebody_has_changed_is_called_as_transformers_does(monkeypatch):
    rows = packed(torch.float32)[0]
    assert packed_layers.can_take(model(torch.float32), rows)

    def refused(change, **settings) -> bool:
        made = model(torch.float32, **settings)
        change(made)
        return not packed_layers.can_take(made, rows)

    assert refused(lambda m: m.layers[1].register_forward_hook(lambda *_: None))
    assert refused(lambda m: m.layers[0].self_attn.register_forward_pre_hook(lambda *_: None))
    assert refused(lambda m: m.norm.register_full_backward_hook(lambda *_: None))
    assert refused(lambda m: setattr(m.layers[0].mlp, "forward", lambda x: x))
    assert refused(lambda m: setattr(m.layers[0], "mlp", torch.nn.Identity()))
    assert refused(lambda m: m.gradient_checkpointing_enable())
    assert refused(lambda m: m.norm.double())
    assert refused(lambda m: m.layers[0].compile())
    assert refused(lambda m: m.layers[1].input_layernorm.compile())
    assert refused(lambda m: setattr(m.layers[0].mlp, "act_fn", torch.nn.GELU()))
    assert refused(lambda m: setattr(m.layers[1], "gradient_checkpointing", True))
    assert refused(lambda m: None, hidden_act="gelu")
    assert refused(lambda m: None, attention_dropout=0.1)
    assert not packed_layers.can_take(model(torch.bfloat16), rows.bfloat16())
    everywhere = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert refused(lambda m: None)
    everywhere.remove()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert refused(lambda m: None)
    assert not packed_layers.can_take(model(torch.float32), rows.to("meta"))
    for asked in ("reference", *(f"{name}=reference" for name in packed_layers.USED)):
        monkeypatch.setenv("LAVIT_KERNELS", asked)
        assert refused(lambda m: None)
