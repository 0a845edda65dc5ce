"""A LLaMA's layers for the pass of one token, in as few calls as there can be.

Products that read the same rows are one product: q, k and v, gate and up. That takes a second copy of their weights,
which lives as long as a generation and costs about what reading them once does, a token's worth of time. A model too
large for a copy spends its time in the products, not in their calls, and has them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import LlamaMLP

from lavit.language.packed_layers import SILU, norm_of, plain

# The most that a model's joined weights may take.
JOINED_BYTES = 2**28

JOINED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")

Map = Callable[[Tensor], Tensor]


class StepLayer:
    """The parts of one decoder layer: rows (N, H) in, rows out.

    qkv: -> (N, (query heads + 2 key-value heads) * head dim), queries first. out: the attention's output projection.
    mlp: -> (N, H). attention_norm, mlp_norm: weight and epsilon of the norm before each. scaling: of the scores.
    """

    def __init__(self, layer: Any, joined: bool) -> None:
        attention = layer.self_attn
        self.qkv = together([attention.q_proj, attention.k_proj, attention.v_proj], joined)
        self.out = product(attention.o_proj)
        self.mlp = gated(layer.mlp) if joined else layer.mlp
        self.attention_norm, self.mlp_norm = norm_of(layer.input_layernorm), norm_of(layer.post_attention_layernorm)
        self.scaling: float = attention.scaling


def step_layers(model: LlamaModel) -> list[StepLayer]:
    """The layers as they are now: made anew for every generation, so that no weights are those before a training step.

    Under autocast the joined weights are in its dtype, and what is made holds there alone.
    """
    size = sum(
        p.numel() * p.element_size()
        for name, module in model.layers.named_modules()
        if name.endswith(JOINED) and is_plain(module)
        for p in module.parameters()
    )
    return [StepLayer(layer, joined=size <= JOINED_BYTES) for layer in model.layers]


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a call is the product with the module's weight and nothing else: no adapter, quantised weight or hook."""
    if not plain(module, nn.Linear):
        return False
    return all(type(p) in (nn.Parameter, Tensor) and p.device.type != "meta" for p in module.parameters())


def product(module: nn.Module) -> Map:
    """The module's own product, without the module where that is all it does."""
    return _multiply(module.weight.t(), module.bias) if is_plain(module) else module


def together(modules: Sequence[Any], joined: bool) -> Map:
    """The modules' outputs side by side; ``joined``: by one product with their weights, where they are plain."""
    first = modules[0]
    alike = all(
        is_plain(m)
        and (m.weight.dtype, m.weight.device) == (first.weight.dtype, first.weight.device)
        and (m.bias is None) == (first.bias is None)
        for m in modules
    )
    if not (joined and alike):
        apart = [product(m) for m in modules]
        return lambda x: torch.cat([of(x) for of in apart], dim=-1)
    bias = None if first.bias is None else _cat([m.bias for m in modules])
    # A copy can as well lie as products of few rows read it fastest.
    return _multiply(_cat([m.weight for m in modules]).t().contiguous(), bias)


def _multiply(weight: Tensor, bias: Tensor | None) -> Map:
    """x (N, C) -> x weight + bias, weight (C, C'): without the calls between ``F.linear`` and the product."""
    if bias is None:
        return partial(torch.mm, mat2=weight)
    return lambda x: torch.addmm(bias, x, weight)


def gated(mlp: Any) -> Map:
    """LLaMA's ``down(act(gate(x)) * up(x))`` with one product for gate and up; the module itself where it does more."""
    if not plain(mlp, LlamaMLP):
        return mlp
    both, down = together([mlp.gate_proj, mlp.up_proj], joined=True), product(mlp.down_proj)
    act = F.silu if plain(mlp.act_fn, SILU) else mlp.act_fn

    def forward(x: Tensor) -> Tensor:
        gate, up = both(x).chunk(2, dim=-1)
        return down(act(gate).mul_(up))

    return forward


def _cat(parts: Sequence[Tensor]) -> Tensor:
    joined = torch.cat([part.detach() for part in parts])
    device = joined.device.type
    if torch.is_autocast_enabled(device) and joined.dtype != torch.float64:  # it keeps its casts of parameters only
        return joined.to(torch.get_autocast_dtype(device))
    return joined
