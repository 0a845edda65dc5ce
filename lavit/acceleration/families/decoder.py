"""The release's decoders, from codes to what conditions a U-Net: no loop over images, no weights of attention kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.acceleration.registry import Case, Part, register
from lavit.acceleration.structure import (
    arguments,
    child,
    expect_arguments,
    expect_heads,
    expect_linear,
    expect_names,
    expect_no_dropout,
    expect_no_hooks,
    expect_shape,
    expect_types,
    holds,
)
from lavit.kernels import Ragged, pad

SELF, CROSS, WHOLE = "x", "x, codebook_embeds, codebook_mask", "x, token_num"
OUTPUT = ("attn_drop", "proj", "proj_drop")
COMMON = ("in_proj", "pos_drop", "blocks", "norm", "decode_task_layer")
HIDDEN = -10000.0
"""Added to the logits of padding. An image without codes sees nothing but padding, all of it alike."""


class SelfAttention:
    def forward(self: Any, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2))


class CrossAttention:
    def forward(self: Any, x: Tensor, codebook_embeds: Tensor, codebook_mask: Tensor) -> Tensor:
        q, k, v = (
            rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for rows in (self.query(x), self.key(codebook_embeds), self.value(codebook_embeds))
        )
        hidden = ((1.0 - codebook_mask) * HIDDEN).to(q.dtype)[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, hidden, scale=self.scale)
        return self.proj(out.transpose(1, 2).flatten(2))


class LowresDecoder:
    def forward(self: Any, x: Tensor, token_num: Tensor) -> Tensor:
        return self.unet_proj(decoded(self, x, token_num))


class HighresDecoder:
    def forward(self: Any, x: Tensor, token_num: Tensor) -> tuple[Tensor, Tensor]:
        features = decoded(self, x, token_num)
        prompt = torch.cat([self.unet_proj_1(features), self.unet_proj_2(features)], dim=-1)
        return prompt, self.unet_attnpool(features)


def decoded(decoder: Any, x: Tensor, token_num: Tensor) -> Tensor:
    """Codes (T, code_dim) of all images and how many each has (B,) -> (B, N, C_out). One wait, for the longest."""
    x = decoder.in_proj(x)
    lengths = token_num.to(x.device)
    ends = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    padded, mask, _ = pad(Ragged(x, ends, longest))
    memory, seen = padded + decoder.pos_embed[:, :longest], mask.to(x.dtype)
    queries = decoder.query_embed.expand(len(lengths), -1, -1)
    for block in decoder.blocks:
        queries = block(queries, codebook_embeds=memory, codebook_mask=seen)
    return decoder.decode_task_layer(decoder.norm(queries))


def self_alike(module: Any) -> bool:
    return holds(module, ("qkv", *OUTPUT)) and arguments(module, "forward") == SELF


def cross_alike(module: Any) -> bool:
    return holds(module, ("query", "key", "value", *OUTPUT)) and arguments(module, "forward") == CROSS


def check_attention(module: Any) -> None:
    width = child(module, "proj").weight.shape[0]
    if self_alike(module):
        expect_names(module, ("qkv", *OUTPUT))
        expect_linear(module, "qkv", width, 3 * width)
    else:
        expect_names(module, ("query", "key", "value", *OUTPUT))
        for name in ("query", "key", "value"):
            expect_linear(module, name, width, width)
    expect_linear(module, "proj", width, width)
    expect_heads(module, width)
    expect_no_dropout(module)
    expect_no_hooks(module, ("attn_drop", "proj_drop"))


def attention_cases(module: Any, normal: Callable[..., Tensor]) -> Iterable[Case]:
    width = module.proj.weight.shape[0]
    x, memory = normal(3, 9, width), normal(3, 5, width)
    mask = (torch.arange(5, device=x.device) < torch.tensor([[5], [2], [0]], device=x.device)).to(x)
    if self_alike(module):
        yield lambda attention: attention(x)
    else:
        yield lambda attention: attention(x, memory, mask)


def alike(*heads: str) -> Callable[[nn.Module], bool]:
    return lambda module: holds(module, (*COMMON, *heads), ("pos_embed", "query_embed"))


def checked(*heads: str) -> Callable[[Any], None]:
    def check(module: Any) -> None:
        expect_names(module, (*COMMON, *heads), ("pos_embed", "query_embed"))
        _, patches, width = module.pos_embed.shape
        expect_shape("pos_embed", module.pos_embed, (1, patches, width))
        expect_shape("query_embed", module.query_embed, (1, patches, width))
        expect_linear(module, "in_proj", module.in_proj.weight.shape[1], width)
        expect_types(module, "decode_task_layer", nn.Linear, nn.Tanh, nn.Linear)
        expect_no_dropout(module)
        expect_no_hooks(module, ("pos_drop",))
        expect_arguments(module, "forward", WHOLE)

    return check


def cases(module: Any, normal: Callable[..., Tensor]) -> Iterable[Case]:
    codes = normal(7, module.in_proj.weight.shape[1])
    lengths = torch.tensor([4, 0, 3], device=codes.device)
    yield lambda decoder: decoder(codes.to(decoder.in_proj.weight.dtype), lengths)


register(Part("decoder self-attention", self_alike, check_attention, SelfAttention, attention_cases))
register(Part("decoder cross-attention", cross_alike, check_attention, CrossAttention, attention_cases))
LOWRES, HIGHRES = ("unet_proj",), ("unet_proj_1", "unet_proj_2", "unet_attnpool")
register(Part("low-resolution decoder", alike(*LOWRES), checked(*LOWRES), LowresDecoder, cases))
register(Part("high-resolution decoder", alike(*HIGHRES), checked(*HIGHRES), HighresDecoder, cases))
