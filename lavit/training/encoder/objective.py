"""What an encoder learns by: its patches drawn again, those that it does not see, and its captions (*derived*).

A tokenizer takes the features of the last block for what an image is: they have to keep the pixels of their own patch,
and to know what the image shows. So a linear layer draws each patch that is seen again from its feature (a denoising
autoencoder), a small decoder those that are not seen from the features of the others (He et al., masked autoencoders),
and the mean of the features is compared with captions (Radford et al., CLIP, here of masked images: Li et al., FLIP).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.tokenizer import LaVITTokenizerConfig
from lavit.tokenizer.encoder import EvaBlock, EvaEncoder
from lavit.tokenizer.position_init import POSITION_STD, plane_waves
from lavit.training.encoder.recipe import EncoderTrainingConfig

HEADS = 4  # of the block that reads captions
TEMPERATURE = 0.07  # at the start, CLIP's
MOST_SCALE = 100.0  # CLIP's bound of what the similarities are multiplied by


class PatchDecoder(nn.Module):
    """Draws the patches that the encoder has not seen, from the features of those that it has."""

    positions: Tensor

    def __init__(self, config: LaVITTokenizerConfig, depth: int) -> None:
        super().__init__()
        width, side = config.hidden_size, config.image_size // config.patch_size
        self.enter = nn.Linear(width, width)
        self.unseen = nn.Parameter(0.1 * torch.randn(width))
        self.register_buffer("positions", POSITION_STD * plane_waves(side, width), persistent=False)
        self.blocks = nn.ModuleList(EvaBlock(config) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, 3 * config.patch_size**2)

    def forward(self, features: Tensor, seen: Tensor, unseen: Tensor) -> Tensor:
        """features (B, V, C) of the patches ``seen`` (B, V) -> pixels (B, M, 3 p p) of those ``unseen`` (B, M)."""
        x = torch.cat((self.enter(features), self.unseen.expand(*unseen.shape, -1)), dim=1)
        x = x + self.positions[torch.cat((seen, unseen), dim=1)]
        for block in self.blocks:
            x = block(x)
        return self.pixels(self.norm(x[:, seen.shape[1] :]))


class CaptionEncoder(nn.Module):
    """Captions (B, L) -> unit vectors (B, width): one block of attention, and the mean of its rows."""

    def __init__(self, size: int, length: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        self.positions = nn.Parameter(0.1 * torch.randn(length, width))
        self.block = nn.TransformerEncoderLayer(
            width, HEADS, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, ids: Tensor) -> Tensor:
        there = ids > 0
        x = self.block(self.embedding(ids) + self.positions, src_key_padding_mask=~there)
        weight = there.to(x.dtype)[..., None]
        return F.normalize(self.out((x * weight).sum(1) / weight.sum(1).clamp(min=1)), dim=-1)


class EncoderObjective(nn.Module):
    """An encoder with what it is trained by, so that one module is optimised, saved and replicated."""

    def __init__(
        self,
        encoder: EvaEncoder,
        sizes: LaVITTokenizerConfig,
        config: EncoderTrainingConfig,
        text_ids: int | None = None,
    ) -> None:
        """text_ids: number of ids that captions are made of; None: captions are not learned from."""
        super().__init__()
        self.config, self.patch_size = config, sizes.patch_size
        self.encoder = encoder
        self.pixels = nn.Linear(sizes.hidden_size, 3 * sizes.patch_size**2)
        if config.objective != "contrastive":
            self.decoder = PatchDecoder(sizes, config.decoder_depth)
        if text_ids is not None:
            text = config.text
            self.image = nn.Sequential(nn.LayerNorm(sizes.hidden_size), nn.Linear(sizes.hidden_size, text.width))
            self.caption = CaptionEncoder(text_ids, text.length, text.width)
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """batch: "images" (B, 3, S, S) normalised, and maybe "captions" (B, L) with "told" (B,) -> the parts of the
        loss, and what tells how good the features are: pixel_r2, the share of the pixels' variance that is read from
        them, through ``feature_noise`` if there is some, and, with captions, matched, the share of the images whose own
        caption is the nearest of the batch."""
        config, device = self.config, self.pixels.weight.device
        images = moved(batch["images"].to(device, non_blocking=True), config.shift)
        wanted = F.unfold(images, self.patch_size, stride=self.patch_size).transpose(1, 2)
        seen, unseen = self.choose(len(images), wanted.shape[1], device)
        features = self.features(images + config.noise * torch.randn_like(images), seen)
        if config.feature_noise:
            features = noisy(features, config.feature_noise)

        own = rows_of(wanted, seen)
        pixel_loss = F.mse_loss(self.pixels(features), own)
        spread = (own - own.mean((0, 1))).square().mean()
        parts = {"pixel_loss": pixel_loss, "pixel_r2": 1 - pixel_loss.detach() / spread.clamp(min=1e-12)}
        loss = config.weights.pixels * pixel_loss
        if unseen.shape[1]:
            target = rows_of(wanted, unseen)
            if config.normalize:
                target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-3).sqrt()
            parts["masked_loss"] = F.mse_loss(self.decoder(features, seen, unseen), target)
            loss = loss + config.weights.masked * parts["masked_loss"]
        if "captions" in batch:
            parts |= self.compare(features.mean(1), batch["captions"].to(device), batch["told"].to(device))
            loss = loss + config.weights.contrastive * parts["contrastive_loss"]
        return parts | {"loss": loss}

    def choose(self, images: int, patches: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Which patches are seen (B, V) and which are not (B, N - V), at random; V is the step's. All are seen where no
        decoder draws the others, and else at least one is not."""
        order = torch.rand(images, patches).argsort(1).to(device)
        if not hasattr(self, "decoder"):
            return order, order[:, patches:]
        low, high = self.config.seen
        share = low + (high - low) * float(torch.rand(()))
        count = min(max(1, round(share * patches)), max(1, patches - 1))
        return order[:, :count], order[:, count:]

    def features(self, images: Tensor, seen: Tensor) -> Tensor:
        """The encoder's features (B, V, C) of patches, which see each other and the class token alone."""
        x = self.encoder.embed(images)
        x = torch.cat((x[:, :1], rows_of(x, seen + 1)), dim=1)
        for block in self.encoder.blocks:
            x = block(x)
        return x[:, 1:]

    def compare(self, pooled: Tensor, ids: Tensor, told: Tensor) -> dict[str, Tensor]:
        """InfoNCE of pooled features (B, C) and captions (B, L), of the images that have one (``told``), both ways.

        Of equal captions in a batch only the own one counts: the others are no wrong answers. Each process compares
        within its own micro-batch.
        """
        image, caption = F.normalize(self.image(pooled), dim=-1)[told], self.caption(ids)[told]
        scale = self.log_scale.exp().clamp(max=MOST_SCALE)
        scores = scale * image @ caption.T
        if len(scores) < 2:  # every parameter still has its gradient
            return {"contrastive_loss": 0.0 * (scores.sum() + scale), "matched": scores.new_zeros(())}
        ids = ids[told]
        same = (ids[:, None] == ids[None]).all(-1).fill_diagonal_(False)
        scores = scores.masked_fill(same, -torch.inf)
        right = torch.arange(len(scores), device=scores.device)
        loss = (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2
        return {"contrastive_loss": loss, "matched": (scores.argmax(1) == right).float().mean()}


def rows_of(values: Tensor, which: Tensor) -> Tensor:
    """Rows ``which`` (B, V) of values (B, N, C) -> (B, V, C)."""
    return values.gather(1, which[..., None].expand(-1, -1, values.shape[-1]))


def noisy(features: Tensor, deviation: float) -> Tensor:
    """Features (B, V, C), each channel with mean 0 and deviation 1 over the batch, and noise of this deviation.

    What a few bits can tell of a feature is what can be read through noise: with some, features turn to what counts
    most for the loss, and to less of the rest (a rate-distortion bottleneck, *derived*). The batch is a process's own
    micro-batch.
    """
    deviations, means = torch.std_mean(features, (0, 1), correction=0)
    return (features - means) / deviations.clamp(min=1e-6) + deviation * torch.randn_like(features)


def moved(images: Tensor, most: int) -> Tensor:
    """Each image (B, 3, S, S) moved by at most so many pixels down or up and right or left, at random; its edge is
    repeated where there is nothing."""
    if most == 0:
        return images
    size = images.shape[-1]
    wide = F.pad(images, (most,) * 4, mode="replicate")
    places = torch.randint(2 * most + 1, (len(images), 2)).tolist()
    return torch.stack([image[:, y : y + size, x : x + size] for image, (y, x) in zip(wide, places, strict=True)])


def parameter_groups(model: EncoderObjective, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, with weight decay and without; freezes what of the encoder no part of the loss reaches: the final
    norm and head of the release's."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        used = not name.startswith(("encoder.norm.", "encoder.head."))
        parameter.requires_grad_(used)
        if used:
            embedding = name.endswith(("pos_embed", "cls_token", "positions", "embedding.weight"))
            (plain if parameter.dim() < 2 or embedding else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
