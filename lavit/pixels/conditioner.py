"""What a U-Net is conditioned on: heads over the decoder's features, and the negatives of guidance."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.pixels.pretrained import StrictPart
from lavit.tokenizer.configuration import LaVITTokenizerConfig
from lavit.tokenizer.decoder import AttentionPool, TokenDecoder

KINDS = ("lowres", "highres")


class Condition(NamedTuple):
    """What a batch of images is conditioned on.

    embeds: (B, N, D) rows that the U-Net attends to. pooled: (B, P) of the high-res kind, or None. mask: (B, N), 1 for
    the rows that count and 0 for padding, or None when all count.
    """

    embeds: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> Condition:
        """Move or cast what is there."""
        pooled, mask = (None if part is None else part.to(*args, **kwargs) for part in self[1:])
        return Condition(self.embeds.to(*args, **kwargs), pooled, mask)

    def unet_arguments(self, time_ids: Tensor | None = None) -> dict[str, Any]:
        """As a UNet2DConditionModel takes it by name. time_ids: (B, 6), which a high-res U-Net needs."""
        arguments: dict[str, Any] = {"encoder_hidden_states": self.embeds}
        if self.mask is not None:
            arguments["encoder_attention_mask"] = self.mask
        if self.pooled is not None:
            arguments["added_cond_kwargs"] = {"text_embeds": self.pooled, "time_ids": time_ids}
        return arguments


class PixelConditioner(StrictPart, ConfigMixin):  # type: ignore[misc]
    """The release's heads that make the decoder's features (B, N, C) what a U-Net is conditioned on.

    kind: "lowres" (for an SD 1.5 U-Net: `unet_proj`) or "highres" (for SDXL's: `unet_proj_1`, `unet_proj_2` side by
    side and `unet_attnpool`). in_dim: C. condition_dim, condition_dim_2: widths that come out. num_patches: N.
    num_heads: of the attention pool. Raises ValueError for another kind or sizes that do not fit together.
    """

    @register_to_config
    def __init__(
        self,
        kind: str = "lowres",
        in_dim: int = 1408,
        condition_dim: int = 768,
        condition_dim_2: int = 1280,
        num_patches: int = 256,
        num_heads: int = 16,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        self.kind, self.in_dim, self.num_patches = kind, in_dim, num_patches
        # Widths of the condition.
        self.embed_dim = condition_dim if kind == "lowres" else condition_dim + condition_dim_2
        self.pooled_dim = None if kind == "lowres" else condition_dim_2
        if kind == "lowres":
            self.unet_proj = nn.Linear(in_dim, condition_dim)
            return
        if in_dim % num_heads:
            raise ValueError(f"num_heads: expected a divisor of in_dim {in_dim}, got {num_heads}")
        self.unet_proj_1 = nn.Linear(in_dim, condition_dim)
        self.unet_proj_2 = nn.Linear(in_dim, condition_dim_2)
        self.unet_attnpool = AttentionPool(num_patches, in_dim, num_heads, condition_dim_2)
        nn.init.normal_(self.unet_attnpool.positional_embedding, std=in_dim**-0.5)

    def forward(self, features: Tensor) -> Condition:
        """features (B, N, C) of ``LaVITTokenizer.decode`` -> their condition, in the heads' precision.

        Raises ValueError for another shape.
        """
        if features.dim() != 3 or features.shape[1:] != (self.num_patches, self.in_dim):
            shape = f"(B, {self.num_patches}, {self.in_dim})"
            raise ValueError(f"features: expected shape {shape}, got {tuple(features.shape)}")
        features = features.to(next(self.parameters()).dtype)
        if self.kind == "lowres":
            return Condition(self.unet_proj(features))
        embeds = torch.cat((self.unet_proj_1(features), self.unet_proj_2(features)), dim=-1)
        return Condition(embeds, self.unet_attnpool(features))

    @classmethod
    def from_decoder(cls, decoder: TokenDecoder) -> PixelConditioner:
        """Copies of the heads of a decoder that has them. Raises ValueError for one that has none."""
        if decoder.kind is None:
            raise ValueError("decoder: expected one with the heads of a U-Net, got decoder_condition None")
        first = decoder.unet_proj if decoder.kind == "lowres" else decoder.unet_proj_1
        sizes: dict[str, Any] = {"in_dim": first.in_features, "condition_dim": first.out_features}
        if decoder.kind == "highres":
            sizes |= {"condition_dim_2": decoder.unet_proj_2.out_features, "num_heads": decoder.unet_attnpool.heads}
        conditioner = cls(decoder.kind, num_patches=decoder.num_patches, **sizes).to(first.weight)
        held = decoder.state_dict()
        conditioner.load_state_dict({name: held[name] for name in conditioner.state_dict()})
        return conditioner

    @classmethod
    def for_tokenizer(cls, config: LaVITTokenizerConfig, kind: str = "lowres", **dims: int) -> PixelConditioner:
        """New heads for the features that a tokenizer of this configuration decodes. dims: other widths than its."""
        names = ("condition_dim", "condition_dim_2", "num_patches", "num_heads")
        sizes = {name: getattr(config, name) for name in names}
        return cls(kind, **{"in_dim": config.decoder_out_dim or config.hidden_size, **sizes, **dims})


class NegativeEmbeds(StrictPart, ConfigMixin):  # type: ignore[misc]
    """Stored rows that guidance pushes away from (the low-res release: 77 of width 768, of an empty text)."""

    @register_to_config
    def __init__(self, length: int = 77, dim: int = 768) -> None:
        super().__init__()
        self.embeds = nn.Parameter(torch.zeros(length, dim), requires_grad=False)

    def forward(self, batch: int) -> Condition:
        """The same rows (B, length, dim) for each image."""
        return Condition(self.embeds.expand(batch, -1, -1))

    @classmethod
    def from_tensor(cls, embeds: Tensor) -> NegativeEmbeds:
        """embeds (length, dim), or (1, length, dim)."""
        rows = embeds[0] if embeds.dim() == 3 and embeds.shape[0] == 1 else embeds
        if rows.dim() != 2 or not rows.is_floating_point():
            raise ValueError(f"embeds: expected floats of shape (length, dim), got {rows.dtype} {tuple(embeds.shape)}")
        model = cls(*rows.shape).to(rows)
        with torch.no_grad():
            model.embeds.copy_(rows)
        return model


def zero_condition(condition: Condition) -> Condition:
    """The negative where none is stored: zeros in the shape of a condition."""
    pooled = None if condition.pooled is None else torch.zeros_like(condition.pooled)
    return Condition(torch.zeros_like(condition.embeds), pooled)


def both_streams(negative: Condition, positive: Condition) -> Condition:
    """Negatives and, after them, positives as one batch (2B, ...) for one call of the U-Net.

    Where one has fewer rows than the other, it is padded with rows of zeros that the mask hides.
    """
    both = (negative, positive)
    missing = [max(part.embeds.shape[1] for part in both) - part.embeds.shape[1] for part in both]
    embeds = torch.cat([F.pad(part.embeds, (0, 0, 0, rows)) for part, rows in zip(both, missing, strict=True)])
    pooled = mask = None
    if positive.pooled is not None:
        empty = torch.zeros_like(positive.pooled) if negative.pooled is None else negative.pooled
        pooled = torch.cat((empty, positive.pooled))
    if any(missing) or any(part.mask is not None for part in both):
        masks = [part.embeds.new_ones(part.embeds.shape[:2]) if part.mask is None else part.mask for part in both]
        mask = torch.cat([F.pad(own, (0, rows)) for own, rows in zip(masks, missing, strict=True)])
    return Condition(embeds, pooled, mask)
