"""EVA's vision transformer: its attention without the weights in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.acceleration.registry import Case, Part, register
from lavit.acceleration.structure import (
    Odd,
    expect_arguments,
    expect_attribute,
    expect_heads,
    expect_linear,
    expect_names,
    expect_no_dropout,
    expect_no_hooks,
    expect_shape,
    holds,
)

CHILDREN = ("qkv", "attn_drop", "inner_attn_ln", "proj", "proj_drop")


class EvaAttention:
    """softmax(q k^T / sqrt d + bias) v, with biases of queries and values and none of keys."""

    def forward(self: Any, x: Tensor, rel_pos_bias: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias, requires_grad=False), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, _added(q, rel_pos_bias, attn_mask), scale=self.scale)
        return self.proj(out.transpose(1, 2).flatten(2))


def _added(q: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """What is added to the logits: a bias that broadcasts to (B, H, N, N), -inf at keys whose mask (B, N) is 0."""
    if mask is None:
        return None if bias is None else bias.type_as(q)
    seen = mask.bool()[:, None, None, :]
    if bias is None:
        return seen
    return bias.type_as(q).masked_fill(~seen, -torch.inf)


def alike(module: Any) -> bool:
    return holds(module, CHILDREN)


def check(module: Any) -> None:
    expect_names(module, CHILDREN, ("q_bias", "v_bias"))
    width = module.qkv.weight.shape[1]
    expect_linear(module, "qkv", width, 3 * width, bias=False)
    expect_linear(module, "proj", width, width)
    for name in ("q_bias", "v_bias"):
        expect_shape(name, getattr(module, name), (width,))
    expect_heads(module, width)
    expect_no_dropout(module)
    if not isinstance(module.inner_attn_ln, nn.Identity):
        raise Odd("inner_attn_ln: expected nothing between attention and projection")
    for name, wanted in (("subln", False), ("relative_position_bias_table", None)):
        expect_attribute(module, name, wanted)
    if getattr(module, "xattn", None):
        raise Odd("runs xformers' attention already")
    if getattr(module, "rope", None):
        raise Odd("rope: expected no rotation")
    expect_no_hooks(module, ("attn_drop", "inner_attn_ln", "proj_drop"))
    expect_arguments(module, "forward", "x, rel_pos_bias=None, attn_mask=None")


def cases(module: Any, normal: Callable[..., Tensor]) -> Iterable[Case]:
    x = normal(2, 17, module.qkv.weight.shape[1])
    bias = normal(2, 1, 17, 17)
    mask = (normal(2, 17) > 0).index_fill(1, torch.zeros(1, dtype=torch.int64, device=x.device), True)
    yield lambda attention: attention(x)
    yield lambda attention: attention(x, bias, mask)


register(Part("encoder attention", alike, check, EvaAttention, cases))
