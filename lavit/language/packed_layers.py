"""The layers of a LLaMA over packed rows on the CPU, with fewer steps between the products.

transformers' layers are written for batches and caches: norms and rotations are a dozen passes over all rows, queries
and keys change their order of dimensions twice, every call looks at a mask. Here the same modules' weights are used on
rows (T, C): half of the calls, and results that are equal up to rounding. Only where nothing would be passed by: a
layer that somebody has hooked, wrapped, replaced or compiled is called as transformers calls it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaModel,
    LlamaRMSNorm,
)

from lavit.kernels import add_rms_norm, rotary_embedding, swiglu, varlen_attention
from lavit.kernels.dispatch import OPERATIONS, direct
from lavit.language.attention import for_every_query

USED = ("add_rms_norm", "rotary_embedding", "swiglu", "varlen_attention")
# Of a module, what makes its call more than its forward: hooks, and what `nn.Module.compile` leaves.
AROUND = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_compiled_call_impl")
SILU = type(ACT2FN["silu"])


def plain(module: nn.Module, kind: type) -> bool:
    """The class itself, with its own forward, without hooks and not compiled."""
    return type(module) is kind and "forward" not in vars(module) and not any(getattr(module, name) for name in AROUND)


def norm_of(norm: Any) -> tuple[Tensor, float]:
    """Weight and epsilon of LLaMA's RMS norm, which `add_rms_norm` has with one rounding instead of two."""
    return norm.weight, norm.variance_epsilon


def can_take(model: Any, x: Tensor) -> bool:
    """Whether `hidden_states` computes what ``model``, a LlamaModel, would of rows x (T, C): in plain float32 in the
    CPU's memory, nothing being compiled, watched or cast. Not where another form of an operation is asked for, by which
    somebody looks for a fault."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not direct(x, gradient=True):
        return False
    if torch.is_autocast_enabled("cpu") or _has_any_global_hook():
        return False
    if any(OPERATIONS[name].choose("auto", x.device) != "cpp" for name in USED):
        return False
    if not plain(model, LlamaModel) or (model.training and model.gradient_checkpointing):
        return False
    norms = [model.norm]
    for layer in model.layers:
        if not (plain(layer, LlamaDecoderLayer) and plain(layer.self_attn, LlamaAttention)):
            return False
        if layer.training and getattr(layer, "gradient_checkpointing", False):
            return False
        if not (plain(layer.mlp, LlamaMLP) and plain(layer.mlp.act_fn, SILU)):
            return False
        if layer.self_attn.training and layer.self_attn.attention_dropout:
            return False
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
    return all(plain(norm, LlamaRMSNorm) and norm.weight.dtype == x.dtype for norm in norms)


def hidden_states(model: Any, x: Tensor, position_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """x (T, C) embeddings, position_ids (T,), offsets (B + 1,) of the samples -> (T, C) after the last norm."""
    cos, sin = (rotation[0].detach() for rotation in model.rotary_emb(x, position_ids[None]))
    delta = None  # what the layer before adds to x: with the next norm, in one pass
    for layer in model.layers[: model.config.num_hidden_layers]:
        attention, mlp = layer.self_attn, layer.mlp
        x, normed = add_rms_norm(x, delta, *norm_of(layer.input_layernorm))
        q, k, v = (
            project(normed).unflatten(-1, (-1, attention.head_dim))
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = rotary_embedding(q, cos, sin), rotary_embedding(k, cos, sin)
        k, v = for_every_query(k, q.shape[1]), for_every_query(v, q.shape[1])
        bounds = cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
        out = varlen_attention(q, k, v, *bounds, causal=True, scale=attention.scaling)
        x, normed = add_rms_norm(x, attention.o_proj(out.flatten(1)), *norm_of(layer.post_attention_layernorm))
        delta = mlp.down_proj(swiglu(mlp.gate_proj(normed), mlp.up_proj(normed)))
    return add_rms_norm(x, delta, *norm_of(model.norm))[1]
