"""The selector and the merger of the release's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.acceleration.registry import Case, Part, policy_of, register
from lavit.acceleration.structure import (
    Odd,
    arguments,
    expect_heads,
    expect_linear,
    expect_names,
    expect_no_dropout,
    expect_no_hooks,
    expect_norm,
    expect_types,
    holds,
)
from lavit.kernels import policy_attention

EPS = 1e-6
"""The release's. Its attention has it as a default argument, which no caller sets; the comparison tells another."""


# What the forward methods take. A decoder's attention has the same names, and takes others.
CAUSAL, CROSS = "x, decisions", "x, x_origin, decisions"
OUTPUT = ("attn_drop", "proj", "proj_drop")


def epsilon(policy: str) -> float:
    return EPS if policy == "exact" else 0.0


class Selector:
    """Log-probabilities of keeping and dropping. Half of what the second linear layer reads is the same for all
    patches of an image: it is multiplied once an image, and not copied to every patch."""

    def forward(self: Any, x: Tensor, policy: Tensor) -> Tensor:
        x = self.in_conv(x)
        local, context = x.tensor_split(2, dim=-1)
        context = (context * policy).sum(dim=1, keepdim=True) / policy.sum(dim=1, keepdim=True)
        first, *others = self.out_conv
        half = local.shape[-1]
        x = F.linear(local, first.weight[:, :half], first.bias) + F.linear(context, first.weight[:, half:])
        for layer in others:
            x = layer(x)
        return x


class CausalAttention:
    """Kept patches, and each its own, up to the row."""

    def forward(self: Any, x: Tensor, decisions: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        eps = epsilon(policy_of(self))
        return self.proj(policy_attention(q, k, v, decisions, kind="causal", eps=eps, scale=self.scale).flatten(2))


class CrossAttention:
    """Dropped patches as they left the encoder."""

    def forward(self: Any, x: Tensor, x_origin: Tensor, decisions: Tensor) -> Tensor:
        q, k, v = (
            rows.unflatten(-1, (self.num_heads, -1))
            for rows in (self.query(x), self.key(x_origin), self.value(x_origin))
        )
        eps = epsilon(policy_of(self))
        out = policy_attention(q, k, v, decisions, kind="cross", eps=eps, scale=self.scale).flatten(2)
        if not eps:
            # An image of which nothing was dropped has no key: the release falls back on its epsilon there, the mean.
            whole = (decisions.detach() != 0).all(dim=1)[:, None, None]
            out = torch.where(whole, v.mean(dim=1).flatten(1)[:, None], out)
        return self.proj(out)


def selector_alike(module: Any) -> bool:
    return holds(module, ("in_conv", "out_conv")) and arguments(module, "forward") == "x, policy"


def check_selector(module: Any) -> None:
    expect_names(module, ("in_conv", "out_conv"))
    first = expect_types(module, "in_conv", nn.Module, nn.Linear, nn.GELU)[1]
    width = first.in_features
    expect_types(module, "out_conv", nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear, nn.LogSoftmax)
    if width % 4:
        raise Odd(f"expected a width that 4 divides, got {width}")
    expect_norm(module, "in_conv.0", width)
    expect_linear(module, "in_conv.1", width, width)
    for path, inputs, outputs in (("0", width, width // 2), ("2", width // 2, width // 4), ("4", width // 4, 2)):
        expect_linear(module, f"out_conv.{path}", inputs, outputs)
    expect_no_hooks(module, ("out_conv", "out_conv.0"))


def selector_cases(module: Any, normal: Callable[..., Tensor]) -> Iterable[Case]:
    width = module.in_conv[1].in_features
    x, mask = normal(2, 7, width).float(), (normal(2, 7, 1) > 0).float().index_fill(1, _first(normal), 1)
    yield lambda selector: selector(x.to(selector.in_conv[0].weight.dtype), torch.ones_like(mask))
    yield lambda selector: selector(x.to(selector.in_conv[0].weight.dtype), mask)


def _first(normal: Callable[..., Tensor]) -> Tensor:
    return torch.zeros(1, dtype=torch.int64, device=normal(1).device)


def causal_alike(module: Any) -> bool:
    return holds(module, ("qkv", *OUTPUT)) and arguments(module, "forward") == CAUSAL


def check_causal(module: Any) -> None:
    expect_names(module, ("qkv", *OUTPUT))
    width = module.qkv.weight.shape[1]
    expect_linear(module, "qkv", width, 3 * width)
    _check_attention(module, width)


def cross_alike(module: Any) -> bool:
    return holds(module, ("query", "key", "value", *OUTPUT)) and arguments(module, "forward") == CROSS


def check_cross(module: Any) -> None:
    expect_names(module, ("query", "key", "value", *OUTPUT))
    width = module.query.weight.shape[1]
    for name in ("query", "key", "value"):
        expect_linear(module, name, width, width)
    _check_attention(module, width)


def _check_attention(module: Any, width: int) -> None:
    expect_linear(module, "proj", width, width)
    expect_heads(module, width)
    expect_no_dropout(module)
    expect_no_hooks(module, ("attn_drop", "proj_drop"))


def attention_cases(module: Any, normal: Callable[..., Tensor]) -> Iterable[Case]:
    width = module.proj.weight.shape[0]
    x, origin = normal(3, 24, width), normal(3, 24, width)
    keep = (normal(3, 24) > 0.4).to(x.dtype)
    keep[1] = 1
    if causal_alike(module):
        yield lambda attention: attention(x, keep)
    else:
        yield lambda attention: attention(x, origin, keep)


register(Part("selector", selector_alike, check_selector, Selector, selector_cases))
register(Part("merger self-attention", causal_alike, check_causal, CausalAttention, attention_cases))
register(Part("merger cross-attention", cross_alike, check_cross, CrossAttention, attention_cases))
