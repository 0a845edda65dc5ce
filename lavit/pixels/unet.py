"""The U-Net of the small preset, which draws pixels without a VAE."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.pixels.pretrained import StrictPart
from lavit.tokenizer.layers import self_attention

WAVES = 64  # numbers that tell the time
PLACE = 4
"""Side in pixels of what a place of a `SmallUNet`'s coarse level stands for."""


def small_unet(
    image_size: int = 32,
    condition_dim: int = 96,
    channels: Sequence[int] = (32, 80),
    layers: int = 2,
    heads: int = 4,
    groups: int = 8,
    patch: int | None = None,
) -> SmallUNet:
    """A `SmallUNet` for RGB images (B, 3, S, S) in [-1, 1]. image_size: S, even. condition_dim: width of the
    condition's rows. patch: patch_size, of patches that are larger than a place of the coarse level."""
    return SmallUNet(
        sample_size=image_size,
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        cross_attention_dim=condition_dim,
        attention_head_dim=heads,
        norm_num_groups=groups,
        patch_size=patch,
    )


class SmallUNet(StrictPart, ConfigMixin):  # type: ignore[misc]
    """A U-Net of two levels, for a condition that has a row for each patch of the image.

    The fine level works on blocks of 2 x 2 pixels, the coarse one on blocks of 4 x 4. The condition's rows are laid
    where their patches are: what an attention of a large U-Net must learn first, which row tells of which place, is
    given here (*derived*; it makes a U-Net learn in minutes on a CPU). They are added to the coarse level and, spread
    over four blocks of pixels each, to the fine one on the way out; and they scale and shift each place in every
    residual block of the coarse level, as the time does all places (*derived*; added to the coarse level alone, a short
    training draws the right colour and often the wrong shape). It is called as a UNet2DConditionModel, and its
    configuration has that model's names.

    sample_size: side of the images it was made for; others will do, of even sides. block_out_channels: of the two
    levels, multiples of norm_num_groups; the coarse one of attention_head_dim, the number of heads, too.
    layers_per_block: residual blocks of the coarse level; the fine one has one on either way.
    cross_attention_dim: width of the condition's rows.
    patch_size: side of a row's patch in pixels, a multiple of 4: each place of 4 x 4 of it reads a linear function of
    its own of the row (*derived*). None: all of them read the same, which is enough for patches of 4 x 4.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        block_out_channels: Sequence[int] = (32, 80),
        layers_per_block: int = 2,
        cross_attention_dim: int = 96,
        attention_head_dim: int = 4,
        norm_num_groups: int = 8,
        time_embedding_dim: int = 64,
        addition_embed_type: str | None = None,
        patch_size: int | None = None,
    ) -> None:
        super().__init__()
        if len(block_out_channels) != 2:
            raise ValueError(f"block_out_channels: expected two levels, got {tuple(block_out_channels)}")
        if addition_embed_type is not None:
            raise ValueError(f"addition_embed_type: expected None, got {addition_embed_type!r}")
        if patch_size is not None and not (isinstance(patch_size, int) and patch_size > 0 and patch_size % PLACE == 0):
            raise ValueError(f"patch_size: expected a multiple of {PLACE} or None, got {patch_size}")
        (fine, coarse), groups, time = block_out_channels, norm_num_groups, time_embedding_dim
        self.time_embedding = nn.Sequential(nn.Linear(WAVES, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.conv_in = nn.Conv2d(4 * in_channels, fine, 3, padding=1)
        self.fine_in = Block(fine, time, groups)
        self.down = nn.Conv2d(fine, coarse, 3, stride=2, padding=1)
        self.cells = 1 if patch_size is None else patch_size // PLACE
        self.condition = nn.Linear(cross_attention_dim, coarse * self.cells**2)
        self.coarse = nn.ModuleList(Block(coarse, time, groups, coarse) for _ in range(layers_per_block))
        self.attention = Attention(coarse, attention_head_dim, groups)
        self.up = nn.Conv2d(coarse, 4 * fine, 1)
        self.condition_up = nn.Conv2d(coarse, 4 * fine, 1)
        self.fine_out = Block(fine, time, groups)
        self.norm_out = nn.GroupNorm(groups, fine)
        self.conv_out = nn.Conv2d(fine, 4 * out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """sample (B, 3, H, W); timestep: one, or (B,); encoder_hidden_states (B, N, cross_attention_dim), the rows of a
        square grid in raster order -> ``sample`` (B, 3, H, W).

        Raises ValueError for odd sides, another number of rows and a mask: each row has its place.
        """
        if encoder_attention_mask is not None:
            raise ValueError("encoder_attention_mask: expected None, since every row of the condition has its place")
        if sample.shape[-2] % 2 or sample.shape[-1] % 2:
            raise ValueError(f"sample: expected even sides, got {tuple(sample.shape)}")
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        time = self.time_embedding(get_timestep_embedding(timestep, WAVES).to(sample.dtype))
        fine = self.fine_in(self.conv_in(F.pixel_unshuffle(sample, 2)), time)
        x = self.down(fine)
        condition = on_grid(self.condition(encoder_hidden_states), x.shape[-2], x.shape[-1], self.cells)
        x = x + condition
        for number, block in enumerate(self.coarse):
            x = block(x, time, condition)
            if number == 0:
                x = self.attention(x)
        up = F.pixel_shuffle(self.up(x) + self.condition_up(F.silu(condition)), 2)
        x = self.fine_out(up[..., : fine.shape[-2], : fine.shape[-1]] + fine, time)
        out = F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), 2)
        return UNet2DConditionOutput(sample=out) if return_dict else (out,)


def on_grid(rows: Tensor, height: int, width: int, cells: int = 1) -> Tensor:
    """Rows (B, N, C cells cells) of a square grid, each of a square of cells -> (B, C, height, width), the nearest cell
    at each place."""
    side = math.isqrt(rows.shape[1])
    if side * side != rows.shape[1]:
        raise ValueError(f"encoder_hidden_states: expected the rows of a square grid, got {rows.shape[1]}")
    grid = F.pixel_shuffle(rows.transpose(1, 2).unflatten(2, (side, side)), cells)
    return grid if tuple(grid.shape[-2:]) == (height, width) else F.interpolate(grid, (height, width), mode="nearest")


class Block(nn.Module):
    """A residual block whose second norm is scaled and shifted by the time and, where it has one, by a condition.

    condition: channels of what each place is scaled and shifted by; 0: nothing.
    """

    def __init__(self, channels: int, time: int, groups: int, condition: int = 0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Linear(time, 2 * channels)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.condition = nn.Conv2d(condition, 2 * channels, 1) if condition else None
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        """x (B, C, H, W); time (B, T); condition (B, condition, H, W) of a block that has one."""
        h = self.conv1(F.silu(self.norm1(x)))
        both = self.time(time)[:, :, None, None]
        if self.condition is not None:
            both = both + self.condition(condition)
        scale, shift = both.chunk(2, dim=1)
        return x + self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))


class Attention(nn.Module):
    """Self-attention over the places of the grid."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"attention_head_dim: expected a divisor of {channels} channels, got {heads}")
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x).flatten(2).transpose(1, 2)
        out = self_attention(self.qkv(rows), self.heads)
        return x + self.proj(out).transpose(1, 2).unflatten(2, x.shape[2:])
