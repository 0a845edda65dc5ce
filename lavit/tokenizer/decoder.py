"""The decoder: every patch's feature back from an image's few codes, and the release's heads that condition a U-Net."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.kernels import Ragged, varlen_attention
from lavit.kernels.checks import verify_offsets
from lavit.tokenizer.configuration import LaVITTokenizerConfig
from lavit.tokenizer.encoder import Mlp
from lavit.tokenizer.layers import CrossAttention, LayerNorm, SelfAttention


@dataclass(frozen=True)
class _Codes:
    """What every block reads: the codes (T, C); queries [cu_x[b], cu_x[b + 1]) are those of image b."""

    memory: Ragged
    cu_x: Tensor
    key_weight: Tensor | None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, N, H, D) to k, v (T, H, D) -> (B, N, H, D): every query to the codes of its own image."""
        cu, longest = self.memory.cu_seqlens, self.memory.max_seqlen
        rows = q.flatten(0, 1)
        out = varlen_attention(rows, k, v, self.cu_x, cu, q.shape[1], longest, key_weight=self.key_weight)
        return out.view_as(q)


class DecoderBlock(nn.Module):
    def __init__(self, config: LaVITTokenizerConfig) -> None:
        super().__init__()
        width, heads, eps = config.hidden_size, config.num_heads, config.layer_norm_eps
        self.norm0 = LayerNorm(width, eps)
        self.self_attn = SelfAttention(width, heads)
        self.norm1 = LayerNorm(width, eps)
        self.cross_attn = CrossAttention(width, heads)
        self.norm2 = LayerNorm(width, eps)
        self.mlp = Mlp(width, config.mlp_ratio)

    def forward(self, x: Tensor, codes: _Codes) -> Tensor:
        x = x + self.self_attn(self.norm0(x))
        # The first block sees the queries, which all images share until they look at their codes.
        x = x.expand(codes.memory.batch_size, -1, -1)
        x = x + self.cross_attn(self.norm1(x), codes.memory.values, codes.attend)
        return x + self.mlp(self.norm2(x))


class AttentionPool(nn.Module):
    """CLIP's attention pool: the mean of the tokens, put in front of them, attends to all; one vector comes out."""

    def __init__(self, num_tokens: int, width: int, heads: int, out_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.zeros(num_tokens + 1, width))
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, out_dim)."""
        x = torch.cat((x.mean(dim=1, keepdim=True), x), dim=1) + self.positional_embedding.to(x.dtype)
        q, k, v = (
            proj(rows).unflatten(-1, (self.heads, x.shape[-1] // self.heads)).transpose(1, 2)
            for proj, rows in ((self.q_proj, x[:, :1]), (self.k_proj, x), (self.v_proj, x))
        )
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))


class TokenDecoder(nn.Module):
    """Learned queries, one a patch, read an image's codes; the codes' places are told by their rank only."""

    def __init__(self, config: LaVITTokenizerConfig) -> None:
        super().__init__()
        width, patches = config.hidden_size, config.num_patches
        out_dim = config.decoder_out_dim or width
        self.num_patches = patches
        self.kind = config.decoder_condition
        self.pos_embed = nn.Parameter(torch.zeros(1, patches, width))
        self.query_embed = nn.Parameter(torch.zeros(1, patches, width))
        self.in_proj = nn.Linear(config.code_dim, width)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_depth))
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.decode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out_dim))
        if self.kind == "lowres":
            self.unet_proj = nn.Linear(out_dim, config.condition_dim)
        if self.kind == "highres":
            self.unet_proj_1 = nn.Linear(out_dim, config.condition_dim)
            self.unet_proj_2 = nn.Linear(out_dim, config.condition_dim_2)
            self.unet_attnpool = AttentionPool(patches, out_dim, config.num_heads, config.condition_dim_2)

    def forward(self, codes: Ragged, *, rank: Tensor | None = None, key_weight: Tensor | None = None) -> Tensor:
        """codes: (T, code_dim) rows, at most N per image -> (B, N, C_out) features.

        rank: (T,) int64, the place of each code among its image's; by default the order in which they are packed.
        key_weight: (T,) multiplies each code's attention weight; 0 hides the code and has a gradient all the same.
        An image without codes is decoded from the queries alone.
        Raises ValueError when an image may have more codes than there are positions (``codes.max_seqlen``).
        """
        self._check(codes)
        if rank is None:
            rank = packed_rank(codes).clamp(max=self.num_patches - 1)
        memory = codes.with_values(self.in_proj(codes.values) + self.pos_embed[0, rank])
        ends = torch.arange(codes.batch_size + 1, device=codes.values.device, dtype=torch.int32) * self.num_patches
        x, read = self.query_embed, _Codes(memory, ends, key_weight)
        for block in self.blocks:
            x = block(x, read)
        return self.decode_task_layer(self.norm(x))

    def condition(self, features: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """What a U-Net is conditioned on, from decoded features (B, N, C_out).

        lowres: (B, N, condition_dim). highres: prompt embeddings (B, N, condition_dim + condition_dim_2) and pooled
        ones (B, condition_dim_2). Raises RuntimeError when the decoder has no such head.
        """
        if self.kind == "lowres":
            return self.unet_proj(features)
        if self.kind == "highres":
            prompt = torch.cat((self.unet_proj_1(features), self.unet_proj_2(features)), dim=-1)
            return prompt, self.unet_attnpool(features)
        raise RuntimeError("condition: this decoder has no U-Net head (decoder_condition is None)")

    def _check(self, codes: Ragged) -> None:
        width, most = self.in_proj.in_features, self.num_patches
        if codes.values.dim() != 2 or codes.values.shape[1] != width:
            raise ValueError(f"codes: expected rows of width {width}, got shape {tuple(codes.values.shape)}")
        if codes.max_seqlen > most:
            raise ValueError(
                f"codes: expected at most {most} codes per image (the decoder's positions), "
                f"got up to {codes.max_seqlen}"
            )
        rows, bound = codes.values.shape[0], codes.max_seqlen
        verify_offsets("codes.cu_seqlens", codes.cu_seqlens, total=rows, longest=bound, bound="codes.max_seqlen")


def packed_rank(ragged: Ragged) -> Tensor:
    """(T,) int64: the place of every row within its own sequence; rows beyond the last sequence count on from it."""
    rows = torch.arange(ragged.values.shape[0], device=ragged.values.device)
    offsets = ragged.cu_seqlens.long()
    return rows - offsets[torch.searchsorted(offsets[1:], rows, right=True)]
