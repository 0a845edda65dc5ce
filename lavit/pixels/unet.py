"""The U-Net of the small preset, which draws pixels without a VAE."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import UNet2DConditionModel


def small_unet(
    image_size: int = 32,
    condition_dim: int = 96,
    channels: Sequence[int] = (16, 32, 48),
    layers: int = 1,
    heads: int = 4,
    groups: int = 8,
) -> UNet2DConditionModel:
    """A U-Net for RGB images (B, 3, S, S) in [-1, 1]; its coarsest level and the middle attend to the condition.

    image_size: S, a multiple of 2 to the power of the number of levels less one. condition_dim: width of the
    condition's rows. channels: of each level, the finest first, multiples of ``groups``, the last of ``heads`` too.
    layers: residual blocks a level on the way down; the way up has one more.
    """
    coarser = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=image_size,
        in_channels=3,
        out_channels=3,
        layers_per_block=layers,
        block_out_channels=tuple(channels),
        down_block_types=("DownBlock2D",) * coarser + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * coarser,
        norm_num_groups=groups,
        cross_attention_dim=condition_dim,
        attention_head_dim=heads,
    )
