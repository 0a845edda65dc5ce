"""Attention of packed rows: the library's operation as an attention function of transformers.

``attn_implementation="lavit_varlen"`` has two ways. A call that brings the samples' offsets (``packed_arguments``) goes
to ``lavit.kernels.varlen_attention``: no token sees another sample, nothing is padded, no mask is built. A call without
them, as in generation with a cache, goes to transformers' "sdpa", with the mask that "sdpa" gets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lavit.kernels import varlen_attention

NAME = "lavit_varlen"


def packed_arguments(cu_seqlens: Tensor, max_seqlen: int, attn_implementation: str = NAME) -> dict[str, Any]:
    """What a transformers language model must be called with, beside ids or embeddings (1, T) and position_ids (1, T)
    that restart in every sample, so that no token sees another sample.

    cu_seqlens: (B + 1,) int32 offsets of the samples; rows beyond the last offset are padding. max_seqlen: an upper
    bound of the samples' lengths. attn_implementation: of the model; those of flash-attn take the same offsets, "sdpa",
    "eager" and "flex_attention" have their masks from the positions.
    """
    arguments: dict[str, Any] = {"use_cache": False}
    if attn_implementation == NAME:
        # A mask of four dimensions is one that the caller has made: transformers makes none, and does not ask the
        # device whether the positions are packed.
        arguments["attention_mask"] = torch.empty(1, 1, 1, 1, dtype=torch.bool, device=cu_seqlens.device)
    if attn_implementation == NAME or attn_implementation.startswith("flash_attention"):
        arguments.update(cu_seq_lens_q=cu_seqlens, cu_seq_lens_k=cu_seqlens)
        arguments.update(max_length_q=max_seqlen, max_length_k=max_seqlen)
    return arguments


def for_every_query(x: Tensor, heads: int) -> Tensor:
    """Keys or values (T, Hk, D) for ``heads`` heads of queries, which share one in turn: repeated side by side."""
    groups = heads // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1, output_size=heads)


def varlen_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (b, Hq, L, D), key and value (b, Hk, L, D) -> (b, L, Hq, D).

    cu_seq_lens_q: (B + 1,) int32 offsets of the samples in the b * L rows; None for transformers' own attention.
    max_length_q: an upper bound of their lengths. Causal, as a language model's attention is.
    Raises ValueError for keys of another number than queries (a cache) and for dropout.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if key.shape[2] != query.shape[2]:
        wanted = query.shape[2]
        raise ValueError(f"key: expected {wanted} rows to match query, got {key.shape[2]}: packed with a cache?")
    if dropout:
        raise ValueError(f"attention_dropout: expected 0 for packed rows, got {dropout}")
    if torch.is_autocast_enabled(query.device.type) and query.dtype != torch.float64:
        # As for PyTorch's own attention: the rotation leaves queries and keys in float32.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (x.to(dtype) for x in (query, key, value))
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    k, v = for_every_query(k, q.shape[1]), for_every_query(v, q.shape[1])
    bound = q.shape[0] if max_length_q is None else max_length_q
    out = varlen_attention(q, k, v, cu_seq_lens_q, cu_seq_lens_q, bound, bound, causal=True, scale=scaling)
    return out.view(query.shape[0], query.shape[2], *out.shape[1:]), None


AttentionInterface.register(NAME, varlen_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
