"""The merger: kept patches take in what the dropped ones knew (LaVIT section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lavit.kernels import Ragged, Selection, pack, policy_attention, varlen_attention
from lavit.tokenizer.configuration import LaVITTokenizerConfig
from lavit.tokenizer.encoder import Mlp
from lavit.tokenizer.layers import CrossAttention, LayerNorm, SelfAttention


@dataclass(frozen=True)
class Layout:
    """A selection with the sizes that the host must know to allocate packed batches, read in one synchronisation.

    total: number of kept patches in the batch; max_kept, max_dropped: the longest image's.
    """

    selection: Selection
    total: int
    max_kept: int
    max_dropped: int

    @property
    def num_patches(self) -> int:
        return self.selection.keep.shape[1]

    @classmethod
    def measure(cls, selection: Selection) -> Layout:
        """Read the sizes of a selection. One host synchronisation."""
        return cls.from_sizes(selection, cls.sizes(selection).tolist())

    @staticmethod
    def sizes(selection: Selection) -> Tensor:
        """(3,) int64 on the device: kept patches in all, most and fewest of an image (zeros for an empty batch)."""
        lengths = selection.cu_kept.diff().long()
        if lengths.numel() == 0:
            return lengths.new_zeros(3)
        return torch.stack((lengths.sum(), lengths.amax(), lengths.amin()))

    @classmethod
    def from_sizes(cls, selection: Selection, sizes: list[int]) -> Layout:
        total, most, fewest = sizes
        return cls(selection, total, most, selection.keep.shape[1] - fewest)

    def kept(self, x: Tensor) -> Ragged:
        """The kept rows of x (B, N, ...), packed in raster order."""
        s = self.selection
        return Ragged(pack(x, s.order, s.cu_kept, total=self.total), s.cu_kept, self.max_kept)

    def dropped(self, x: Tensor) -> Ragged:
        """The dropped rows of x (B, N, ...), packed in raster order."""
        s = self.selection
        values = pack(x, s.order, s.cu_dropped, total=s.keep.numel() - self.total, dropped=True)
        return Ragged(values, s.cu_dropped, self.max_dropped)


@dataclass(frozen=True)
class _Dense:
    """What every block needs to compute all rows: the rows (B, N, C) as they left the encoder, keep (B, N), epsilon."""

    origin: Tensor
    keep: Tensor
    eps: float
    whole: None = None

    def causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return policy_attention(q, k, v, self.keep, kind="causal", eps=self.eps)

    def cross(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return policy_attention(q, k, v, self.keep, kind="cross", eps=self.eps)


@dataclass(frozen=True)
class Packed:
    """What every block needs to compute kept rows: offsets, dropped rows as they left the encoder, mask weights.

    causal_weight (T,), cross_weight (T'): the mask's values, all 1, that carry its gradient; None without a gradient.
    whole: for images of which nothing was dropped, (B, C) mean of their origin rows and (T,) their rows' image ids
        and (T, 1) whether the row's image is such a one; None when there is no such image. The release's formula has no
        key to attend to there and falls back on its epsilon: the mean of all values.
    """

    kept: Ragged
    dropped: Ragged
    causal_weight: Tensor | None
    cross_weight: Tensor | None
    whole: tuple[Tensor, Tensor, Tensor] | None

    @classmethod
    def of(cls, ln_vision: Callable[[Tensor], Tensor], features: Tensor, kept: Ragged, layout: Layout) -> Packed:
        """From features (B, N, C), their kept rows, and the norm of the rows that cross-attention reads."""
        keep = layout.selection.keep
        causal_weight = cross_weight = whole = None
        if torch.is_grad_enabled() and keep.requires_grad:
            causal_weight, cross_weight = layout.kept(keep).values, layout.dropped(1 - keep).values
        dropped = layout.dropped(features)
        origin = dropped.with_values(ln_vision(dropped.values))
        if layout.max_kept == layout.num_patches and layout.total > 0:
            lengths = layout.selection.cu_kept.diff()
            image = torch.repeat_interleave(lengths, output_size=layout.total)
            is_whole = (lengths == layout.num_patches)[image].unsqueeze(1)
            whole = (ln_vision(features).mean(dim=1), image, is_whole)
        return cls(kept, origin, causal_weight, cross_weight, whole)

    @property
    def origin(self) -> Tensor:
        return self.dropped.values

    def causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cu, longest = self.kept.cu_seqlens, self.kept.max_seqlen
        return varlen_attention(q, k, v, cu, cu, longest, longest, causal=True, key_weight=self.causal_weight)

    def cross(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cu_seqlens = self.kept.cu_seqlens, self.dropped.cu_seqlens
        longest = self.kept.max_seqlen, self.dropped.max_seqlen
        return varlen_attention(q, k, v, *cu_seqlens, *longest, key_weight=self.cross_weight)


class MergerBlock(nn.Module):
    """Kept patches read the kept ones before them and themselves, then the dropped ones as they left the encoder."""

    def __init__(self, config: LaVITTokenizerConfig) -> None:
        super().__init__()
        width, heads, eps = config.hidden_size, config.num_heads, config.layer_norm_eps
        self.norm0 = LayerNorm(width, eps)
        self.token_causal_attn = SelfAttention(width, heads)
        self.norm1 = LayerNorm(width, eps)
        self.token_cross_attn = CrossAttention(width, heads)
        self.norm2 = LayerNorm(width, eps)
        self.mlp = Mlp(width, config.mlp_ratio)

    def forward(self, x: Tensor, context: _Dense | Packed) -> Tensor:
        x = x + self.token_causal_attn(self.norm0(x), context.causal)
        x = x + self.token_cross_attn(self.norm1(x), context.origin, context.cross, context.whole)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    """Blocks of causal self-attention among kept patches, cross-attention to dropped ones, and an MLP.

    Two forms of one function, up to the release's epsilon: kept patches never read a dropped one's updated state.
    """

    def __init__(self, config: LaVITTokenizerConfig) -> None:
        super().__init__()
        self.eps = config.attention_eps
        self.ln_vision = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.blocks = nn.ModuleList(MergerBlock(config) for _ in range(config.merger_depth))
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, features: Tensor, layout: Layout, form: str) -> Ragged:
        """The merged kept rows (T, C) of features (B, N, C), by the form "packed" or "dense"."""
        if form == "packed":
            return self.packed(features, layout)
        return layout.kept(self.dense(features, layout.selection.keep))

    def dense(self, features: Tensor, keep: Tensor) -> Tensor:
        """The release's form: features (B, N, C), keep (B, N) -> (B, N, C), all rows, exact gradient to ``keep``."""
        return self._run(features, _Dense(self.ln_vision(features), keep, self.eps))

    def packed(self, features: Tensor, layout: Layout) -> Ragged:
        """The paper's form: features (B, N, C) -> the kept rows only, (T, C) packed in raster order.

        The gradient to the mask reaches kept patches as self-attention keys (their own row's included) and dropped
        patches as cross-attention keys.
        """
        kept = layout.kept(features)
        return kept.with_values(self._run(kept.values, Packed.of(self.ln_vision, features, kept, layout)))

    def _run(self, x: Tensor, context: _Dense | Packed) -> Tensor:
        for block in self.blocks:
            x = block(x, context)
        return self.norm(x)
