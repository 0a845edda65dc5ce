"""The frozen image encoder: EVA's vision transformer (EVA-CLIP ViT-g/14 in the release), of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.tokenizer.configuration import LaVITTokenizerConfig
from lavit.tokenizer.layers import Attend, LayerNorm, self_attention, to_all


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class EvaAttention(nn.Module):
    """Self-attention whose queries and values have a bias and whose keys have none."""

    attend: Attend = staticmethod(to_all)

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def joined_bias(self) -> Tensor:
        """(3 C,) of queries, keys and values."""
        return torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))

    def join_bias(self) -> None:
        """Give ``qkv`` its bias for good, where q_bias and v_bias no longer change; it is in no state dict."""
        del self.qkv.bias
        self.qkv.register_buffer("bias", self.joined_bias().detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # Joined, the module itself is called, which quantisation may have replaced.
        qkv = F.linear(x, self.qkv.weight, self.joined_bias()) if self.qkv.bias is None else self.qkv(x)
        return self.proj(self_attention(qkv, self.heads, self.attend))


class EvaBlock(nn.Module):
    def __init__(self, config: LaVITTokenizerConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.encoder_layer_norm_eps
        self.norm1 = LayerNorm(width, eps)
        self.attn = EvaAttention(width, config.encoder_heads)
        self.norm2 = LayerNorm(width, eps)
        self.mlp = Mlp(width, config.encoder_mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    def __init__(self, config: LaVITTokenizerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class EvaEncoder(nn.Module):
    """Images to patch features: the last block's output, without the final norm and without the class token.

    ``norm`` and ``head`` turn the class token into EVA-CLIP's image embedding. They are there so that the release's
    files load whole; tokenization never runs them, and ``encoder_head_dim=None`` leaves them out.

    prepared: what `lavit.tokenizer.inference` has made of it, which then runs in its place: images -> all rows.
    """

    prepared: Callable[[Tensor], Tensor] | None = None

    def __init__(self, config: LaVITTokenizerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.image_size = config.image_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_patches + 1, width))
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(EvaBlock(config) for _ in range(config.encoder_depth))
        if config.encoder_head_dim is not None:
            self.norm = LayerNorm(width, config.encoder_layer_norm_eps)
            self.head = nn.Linear(width, config.encoder_head_dim)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.prepared is not None:  # before its weights, of which quantised ones say nothing that helps
            raise RuntimeError("for_inference: a prepared tokenizer cannot be copied or pickled; do that before")
        return super().__reduce_ex__(protocol)

    def forward(self, images: Tensor, class_token: bool = False) -> Tensor:
        """images (B, 3, S, S), normalised pixels -> (B, N, C), or (B, 1 + N, C) with the class token in front.

        Raises ValueError for another shape and TypeError for integer pixels.
        """
        size = self.image_size
        if images.dim() != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"images: expected shape (B, 3, {size}, {size}), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise TypeError(
                f"images: expected normalised floating-point pixels (LaVITImageProcessor), got {images.dtype}"
            )
        if self.prepared is not None:
            x = self.prepared(images)
        else:
            x = self.embed(images)
            for block in self.blocks:
                x = block(x)
        return x if class_token else x[:, 1:]

    def embed(self, images: Tensor) -> Tensor:
        """What the first block sees, (B, 1 + N, C): class token and patches, each with its position."""
        x = self.patch_embed(images.to(self.pos_embed.dtype))
        return torch.cat((self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
