"""The layers of a LLaMA over packed rows on the CPU, with fewer steps between the products.

transformers' layers are written for batches and caches: norms and rotations are a dozen passes over all rows, queries
and keys change their order of dimensions twice, every call looks at a mask. Here the same modules' weights are used on
rows (T, C): half of the calls, and results that are equal up to rounding. Only where nothing would be passed by: a
layer that somebody has hooked, wrapped, replaced or compiled is called as transformers calls it.
"""

from __future__ import annotations

from typing import Any

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

from lavit.kernels import varlen_attention
from lavit.kernels.llama import rms_norm, rotate, silu_gate, usable
from lavit.kernels.varlen_attention.library import OPERATION as VARLEN_ATTENTION
from lavit.language.attention import for_every_query

# Of a module, what makes its call more than its forward: hooks, and what `nn.Module.compile` leaves.
AROUND = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_compiled_call_impl")
SILU = type(ACT2FN["silu"])


def plain(module: nn.Module, kind: type) -> bool:
    """The class itself, with its own forward, without hooks and not compiled."""
    return type(module) is kind and "forward" not in vars(module) and not any(getattr(module, name) for name in AROUND)


def can_take(model: Any, x: Tensor) -> bool:
    """Whether `hidden_states` computes what ``model``, a LlamaModel, would of rows x (T, C); not where another form of
    the attention is asked for, by which somebody looks for a fault."""
    if not (usable(x) and plain(model, LlamaModel)) or (model.training and model.gradient_checkpointing):
        return False
    if VARLEN_ATTENTION.choose("auto", x.device) != "cpp" or _has_any_global_hook():
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
    for layer in model.layers[: model.config.num_hidden_layers]:
        attention = layer.self_attn
        normed = _norm(layer.input_layernorm, x)
        q, k, v = (
            project(normed).unflatten(-1, (-1, attention.head_dim))
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = for_every_query(k, q.shape[1]), for_every_query(v, q.shape[1])
        bounds = cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
        out = varlen_attention(q, k, v, *bounds, causal=True, scale=attention.scaling)
        x = x + attention.o_proj(out.flatten(1))
        mlp, normed = layer.mlp, _norm(layer.post_attention_layernorm, x)
        x = x + mlp.down_proj(silu_gate(mlp.gate_proj(normed), mlp.up_proj(normed)))
    return _norm(model.norm, x)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return rms_norm(x, norm.weight, norm.variance_epsilon)
