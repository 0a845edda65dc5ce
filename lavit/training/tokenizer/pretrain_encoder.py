"""An image encoder for the small tokenizer, trained on the shapes world in a minute.

The paper's encoder is EVA-CLIP ViT-g/14, frozen; nothing of that size learns on a CPU. Here the same architecture, in
small, learns to draw every patch again and to say what it shows (*derived*, all of it).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.shapes.world import NUM_CLASSES, SIZE, ShapesWorld
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer

SCENES_PER_DRAW = 2048
NOISE = 0.15  # deviation of the noise that the encoder learns to look through, in normalised pixels


class Heads(nn.Module):
    """What the features must tell, patch by patch: its pixels, and what it shows."""

    def __init__(self, width: int, patch_pixels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, patch_pixels)
        self.kind = nn.Linear(width, NUM_CLASSES)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C) -> pixels (B, N, 3 p p) and scores (B, N, NUM_CLASSES)."""
        return self.pixels(features), self.kind(self.norm(features))


def pretrain_encoder(
    tokenizer: LaVITTokenizer,
    *,
    steps: int = 400,
    batch_size: int = 64,
    learning_rate: float = 4e-3,
    seed: int = 0,
    log_every: int = 20,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train ``tokenizer.encoder`` in place on scenes of the shapes world, on the device that it is on.

    The loss is the mean squared error of each patch's normalised pixels plus the cross-entropy of what the patch shows.
    The second is per patch and not per cell, and the encoder sees the scenes with more noise than they have, so that
    patches of the background have little to tell: a dynamic tokenizer can only spend its tokens where the content is
    if the features say where that is.

    Returns a row for every ``log_every`` steps, with step, loss, accuracy (share of the patches of objects that are
    named rightly) and images_per_second; ``progress`` gets each as it comes. The encoder is left frozen, the caller's
    random generators as they were. Raises ``ValueError`` for an encoder of another image size.
    """
    config = tokenizer.config
    if config.image_size != SIZE:
        raise ValueError(f"tokenizer: expected image_size {SIZE} (the shapes world), got {config.image_size}")
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size: expected at least 1, got {steps} and {batch_size}")
    encoder, patch_size = tokenizer.encoder, config.patch_size
    device = encoder.pos_embed.device
    cuda = [device] if device.type == "cuda" else []
    history: list[dict[str, Any]] = []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        heads = Heads(config.hidden_size, 3 * patch_size**2).to(device)
        encoder.requires_grad_(True).train()
        parameters = [*encoder.parameters(), *heads.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.05, fused=True)
        batches = _batches(seed, batch_size, patch_size, device)
        began = time.perf_counter()
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(step - 1, steps)
            images, kinds = next(batches)
            pixels, scores = heads(encoder(images + NOISE * torch.randn_like(images)))
            wanted = F.unfold(images, patch_size, stride=patch_size).transpose(1, 2)
            loss = 5 * F.mse_loss(pixels, wanted) + 3 * F.cross_entropy(scores.flatten(0, 1), kinds.flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if step % log_every == 0 or step == steps:
                objects = kinds > 0
                right = (scores.argmax(-1) == kinds) & objects
                seconds = time.perf_counter() - began
                row = {
                    "step": step,
                    "steps": steps,
                    "loss": float(loss.detach()),
                    "accuracy": float(right.sum() / objects.sum().clamp(min=1)),
                    "images_per_second": step * batch_size / seconds,
                    "eta_seconds": (steps - step) * seconds / step,
                }
                history.append(row)
                if progress is not None:
                    progress(row)
    encoder.requires_grad_(False).eval()
    return history


def _schedule(step: int, steps: int) -> float:
    """Warm-up over a tenth of the steps, then a cosine to nothing."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _batches(seed: int, batch_size: int, patch_size: int, device: torch.device):
    """Endless new scenes: normalised images (B, 3, 32, 32) and what their patches show (B, N)."""
    processor = LaVITImageProcessor(size=SIZE)
    draw = -(-SCENES_PER_DRAW // batch_size) * batch_size
    for scenes in ShapesWorld(seed).batches(draw):
        kinds = torch.from_numpy(scenes.patches(patch_size))
        for first in range(0, draw, batch_size):
            rows = slice(first, first + batch_size)
            yield processor(scenes.images[rows]).to(device), kinds[rows].to(device)
