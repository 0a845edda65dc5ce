"""What stage 3 minimises: the error of the U-Net's prediction on noised images, and averages of what it learns.

The noise schedule is the scheduler's (DDPM, arXiv 2006.11239): x_t = √ᾱ_t x + √(1 − ᾱ_t) ε, with t uniform.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lavit.pixels.conditioner import Condition, NegativeEmbeds, PixelConditioner, both_streams, zero_condition


def noised(x: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """√ᾱ x + √(1 − ᾱ) ε. x, noise (B, c, h, w); alpha (B,), ᾱ at each image's time."""
    alpha = alpha.view(-1, 1, 1, 1)
    return alpha.sqrt() * x + (1 - alpha).sqrt() * noise


def target(x: Tensor, noise: Tensor, alpha: Tensor, prediction: str) -> Tensor:
    """What the U-Net is to say: ε, v = √ᾱ ε − √(1 − ᾱ) x (arXiv 2202.00512), or x itself ("sample")."""
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return x
    alpha = alpha.view(-1, 1, 1, 1)
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * x


def min_snr_weight(alpha: Tensor, gamma: float, prediction: str) -> Tensor:
    """Min-SNR weighting (arXiv 2303.09556) of the squared error. alpha (B,) -> (B,).

    With SNR = ᾱ/(1 − ᾱ): min(SNR, γ) for x, min(1, γ/SNR) for ε, min(SNR, γ)/(SNR + 1) for v. Written in ᾱ, so that
    ᾱ = 0 and ᾱ = 1 are no special cases.
    """
    share = torch.minimum(alpha, gamma * (1 - alpha))  # min(SNR, γ)·(1 − ᾱ) = min(SNR, γ)/(SNR + 1)
    if prediction == "v_prediction":
        return share
    if prediction == "epsilon":
        return torch.where(alpha > 0, share / alpha.clamp(min=1e-12), torch.ones_like(alpha))
    return torch.where(alpha < 1, share / (1 - alpha).clamp(min=1e-12), torch.full_like(alpha, gamma))


def without_some(condition: Condition, drop: Tensor, negative: NegativeEmbeds | None) -> Condition:
    """The condition with the negative's rows, or zeros, in the images that `drop` (B,) bool names."""
    batch = len(drop)
    other = zero_condition(condition) if negative is None else negative(batch).to(condition.embeds)
    rows = torch.arange(batch, device=drop.device) + batch * (~drop)
    embeds, pooled, mask = both_streams(other, condition)
    return Condition(embeds[rows], *(None if part is None else part[rows] for part in (pooled, mask)))


class Trained(nn.Module):
    """What stage 3 trains, U-Net and conditioner, and their moving averages, which are what is saved.

    After `updates` steps the averages keep min(decay, (1 + updates)/(10 + updates)) of themselves, as diffusers'
    EMAModel does: the first steps are forgotten soon.
    """

    updates: Tensor

    def __init__(self, unet: Any, conditioner: PixelConditioner, decay: float) -> None:
        super().__init__()
        self.unet, self.conditioner, self.decay = unet, conditioner, decay
        self.average = nn.ModuleDict({"unet": copy.deepcopy(unet), "conditioner": copy.deepcopy(conditioner)})
        self.average.requires_grad_(False).eval()
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def trained_parameters(self) -> list[Tensor]:
        return [*self.unet.parameters(), *self.conditioner.parameters()]

    @torch.no_grad()
    def move_average(self) -> None:
        """Call it after each step of the optimizer. The host does not wait."""
        kept = ((1 + self.updates) / (10 + self.updates)).clamp(max=self.decay) * (self.updates > 0)
        averages: list[Tensor] = [*self.average["unet"].parameters(), *self.average["conditioner"].parameters()]
        difference = torch._foreach_sub(self.trained_parameters(), averages)
        torch._foreach_mul_(difference, 1 - kept)
        torch._foreach_add_(averages, difference)
        self.updates += 1


class Step(nn.Module):
    """The loss of one batch as a module, so that DistributedDataParallel sees the whole of it.

    alphas: (T,) ᾱ of the scheduler. drop: share of the images whose condition is dropped. gamma: of the min-SNR
    weighting, None for the plain mean. vae: encodes images, frozen; None: the U-Net works on pixels.
    """

    def __init__(
        self,
        trained: Trained,
        alphas: Tensor,
        prediction: str,
        *,
        drop: float,
        gamma: float | None = None,
        vae: Any = None,
        negative: NegativeEmbeds | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.conditioner = trained.unet, trained.conditioner
        self.prediction, self.drop, self.gamma = prediction, drop, gamma
        self._frozen = (alphas.float(), vae, negative)  # no part of the module

    def forward(self, images: Tensor, features: Tensor, time_ids: Tensor | None = None) -> dict[str, Tensor]:
        """images (B, 3, H, W) in [-1, 1]; features (B, N, C), x_rec; time_ids (B, 6) of a high-res U-Net.

        All noise comes from torch's global generators. Returns "loss", and "error", the mean squared error without
        weights.
        """
        alphas, vae, _ = self._frozen
        x = latents_of(images, vae)
        time = torch.randint(len(alphas), (len(x),), device=x.device)
        noise = torch.randn_like(x)
        dropped = torch.rand(len(x), device=x.device) < self.drop
        return {name: value.mean() for name, value in self.errors(x, features, time, noise, dropped, time_ids).items()}

    def errors(
        self, x: Tensor, features: Tensor, time: Tensor, noise: Tensor, dropped: Tensor, time_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """ "loss" and "error" (B,) of what is noised, x (B, c, h, w), at these times and with this noise. dropped: (B,)
        bool, images without their condition."""
        alphas, _, negative = self._frozen
        alpha = alphas[time]
        condition = without_some(self.conditioner(features), dropped, negative)
        arguments = condition.unet_arguments(time_ids)
        predicted = self.unet(noised(x, noise, alpha), time, **arguments).sample.float()
        error = (predicted - target(x, noise, alpha, self.prediction)).square().mean((1, 2, 3))
        weight = 1.0 if self.gamma is None else min_snr_weight(alpha, self.gamma, self.prediction)
        return {"loss": weight * error, "error": error}


@torch.no_grad()
def latents_of(images: Tensor, vae: Any, draw: bool = True) -> Tensor:
    """What is noised, float32: a draw of the VAE's latents in the U-Net's scale, or their mode, or the images
    themselves."""
    if vae is None:
        return images
    with torch.autocast(images.device.type, enabled=False):  # SDXL's VAE overflows in half precision
        latents = vae.encode(images.to(vae.dtype)).latent_dist
        drawn = latents.sample() if draw else latents.mode()
    return drawn.float() * vae.config.scaling_factor


def parameter_groups(trained: Trained, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and filters decay; vectors do not."""
    parameters = trained.trained_parameters()
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
