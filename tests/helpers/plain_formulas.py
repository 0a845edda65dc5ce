"""The tokenizer's modules as plain formulas over a dictionary of weights, in whatever precision these have.

An independent oracle: no module and no operation of the library is used here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def cast(weights: Weights, dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: t.to(dtype) if t.is_floating_point() else t for k, t in weights.items()}


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def norm(w: Weights, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    return linear(w, f"{name}.fc2", F.gelu(linear(w, f"{name}.fc1", x)))


def heads(x: Tensor, count: int) -> Tensor:
    """(B, N, C) -> (B, H, N, D)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def policy(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, eps: float = 1e-6) -> Tensor:
    """The release's masked attention; allowed (B, 1, N, N) holds P."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    mass = (scores - scores.amax(-1, keepdim=True)).exp() * allowed
    share = (mass + eps / k.shape[-2]) / (mass.sum(-1, keepdim=True) + eps)
    return (share @ v).transpose(1, 2).flatten(2)


def encoder(w: Weights, images: Tensor, depth: int, head_count: int, patch: int) -> Tensor:
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat((w["cls_token"].expand(x.shape[0], -1, -1), x), dim=1) + w["pos_embed"]
    for i in range(depth):
        p = f"blocks.{i}"
        q_bias, v_bias = w[f"{p}.attn.q_bias"], w[f"{p}.attn.v_bias"]
        bias = torch.cat((q_bias, torch.zeros_like(q_bias), v_bias))
        qkv = F.linear(norm(w, f"{p}.norm1", x, 1e-6), w[f"{p}.attn.qkv.weight"], bias).chunk(3, dim=-1)
        x = x + linear(w, f"{p}.attn.proj", attend(*(heads(t, head_count) for t in qkv)))
        x = x + mlp(w, f"{p}.mlp", norm(w, f"{p}.norm2", x, 1e-6))
    return x


def selector(w: Weights, x: Tensor) -> Tensor:
    x = F.gelu(linear(w, "in_conv.1", norm(w, "in_conv.0", x)))
    half = x.shape[-1] // 2
    x = torch.cat((x[..., :half], x[..., half:].mean(1, keepdim=True).expand(-1, x.shape[1], -1)), dim=-1)
    x = F.gelu(linear(w, "out_conv.2", F.gelu(linear(w, "out_conv.0", x))))
    return linear(w, "out_conv.4", x).log_softmax(-1)


def merger(w: Weights, x: Tensor, keep: Tensor, depth: int, head_count: int) -> Tensor:
    """All rows (B, N, C), the release's formula."""
    n = x.shape[1]
    eye, lower = torch.eye(n, dtype=x.dtype), torch.ones(n, n, dtype=x.dtype).tril()
    column = keep.to(x.dtype)[:, None, None, :]
    causal = (column * (1 - eye) + eye) * lower
    crossing = (1 - column).expand(-1, -1, n, -1)
    origin = norm(w, "ln_vision", x)
    for i in range(depth):
        p = f"blocks.{i}"
        qkv = linear(w, f"{p}.token_causal_attn.qkv", norm(w, f"{p}.norm0", x)).chunk(3, dim=-1)
        out = policy(*(heads(t, head_count) for t in qkv), causal)
        x = x + linear(w, f"{p}.token_causal_attn.proj", out)
        q = linear(w, f"{p}.token_cross_attn.query", norm(w, f"{p}.norm1", x))
        k, v = (linear(w, f"{p}.token_cross_attn.{name}", origin) for name in ("key", "value"))
        out = policy(*(heads(t, head_count) for t in (q, k, v)), crossing)
        x = x + linear(w, f"{p}.token_cross_attn.proj", out)
        x = x + mlp(w, f"{p}.mlp", norm(w, f"{p}.norm2", x))
    return norm(w, "norm", x)


def decoder(w: Weights, codes: Tensor, lengths: list[int], depth: int, head_count: int) -> Tensor:
    """codes (T, D) of images with the given lengths -> (B, N, C_out), by padding."""
    n, longest = w["query_embed"].shape[1], max(lengths)
    padded = torch.stack([F.pad(c, (0, 0, 0, longest - len(c))) for c in codes.split(lengths)])
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None])[:, None, None, :]
    memory = linear(w, "in_proj", padded) + w["pos_embed"][:, :longest]
    x = w["query_embed"].expand(len(lengths), n, -1)
    for i in range(depth):
        p = f"blocks.{i}"
        qkv = linear(w, f"{p}.self_attn.qkv", norm(w, f"{p}.norm0", x)).chunk(3, dim=-1)
        x = x + linear(w, f"{p}.self_attn.proj", attend(*(heads(t, head_count) for t in qkv)))
        q = linear(w, f"{p}.cross_attn.query", norm(w, f"{p}.norm1", x))
        k, v = (linear(w, f"{p}.cross_attn.{name}", memory) for name in ("key", "value"))
        x = x + linear(w, f"{p}.cross_attn.proj", attend(*(heads(t, head_count) for t in (q, k, v)), mask))
        x = x + mlp(w, f"{p}.mlp", norm(w, f"{p}.norm2", x))
    return linear(w, "decode_task_layer.2", linear(w, "decode_task_layer.0", norm(w, "norm", x)).tanh())
