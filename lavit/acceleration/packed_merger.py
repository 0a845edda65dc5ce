"""The merger's packed form on modules of the release's names: kept rows only, the paper's formula."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lavit.tokenizer.layers import cross_attention, self_attention
from lavit.tokenizer.merger import Layout, Packed


def merge_kept(merger: Any, features: Tensor, layout: Layout) -> Tensor:
    """features (B, N, C) -> (T, C), the kept rows that ``merger(features, keep)`` has, up to its epsilon."""
    kept = layout.kept(features)
    context = Packed.of(merger.ln_vision, features, kept, layout)
    x = kept.values
    for block in merger.blocks:
        own, others = block.token_causal_attn, block.token_cross_attn
        x = x + own.proj(self_attention(own.qkv(block.norm0(x)), own.num_heads, context.causal))
        x = x + cross_attention(others, others.num_heads, block.norm1(x), context.origin, context.cross, context.whole)
        x = x + block.mlp(block.norm2(x))
    return merger.norm(x)


def passed_by(merger: Any) -> Iterator[nn.Module]:
    """The modules that :func:`merge_kept` does not call, while it calls those within."""
    yield merger
    for block in merger.blocks:
        yield from (block, block.token_causal_attn, block.token_cross_attn)
