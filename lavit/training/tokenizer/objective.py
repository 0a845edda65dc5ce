"""The parts of stage 1 that know the tokenizer: its step, and what is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.kernels.gumbel_select import SEED_RANGE
from lavit.kernels.types import compute_dtype
from lavit.tokenizer import LaVITTokenizer
from lavit.tokenizer.losses import BatchShare
from lavit.training.engine import distributed
from lavit.training.engine.metrics import COUNTS

# Parts that the stage-1 loss does not reach: the frozen encoder, the projection to the language model and the heads
# that condition a U-Net. They take no gradient and have no place in the optimizer.
UNTRAINED = ("encoder.", "vit_proj.", "decoder.unet_", "quantize.")
# Not shrunk by weight decay, besides everything with one dimension: embeddings.
EMBEDDINGS = ("pos_embed", "query_embed", "feature_position")


class Step(nn.Module):
    """One micro-batch of stage 1 as a module, so that DistributedDataParallel sees the whole of it."""

    def __init__(self, tokenizer: LaVITTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(
        self,
        batch: dict[str, Tensor],
        *,
        quantize: bool,
        tau: float,
        noise_scale: float,
        warm_start: float | None,
        relative: float = 0.0,
        share: BatchShare | None = None,
        outstanding: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """batch: "images" or "features", and maybe "seeds" (B,) of the selection's noise -> scalars and, when
        quantising, the use of the codes (K,).

        warm_start: weight of the contrast loss in this step; None where the run has no warm start. relative: of
        `contrast`. share, outstanding: of a micro-batch that is a part of a larger batch, as `look_ahead` finds them.
        """
        tokenizer = self.tokenizer
        features = features_of(tokenizer, batch)
        noise: dict[str, Any] = {"seeds": batch.get("seeds"), "tau": tau, "noise_scale": noise_scale}
        out = tokenizer(features=features, quantize=quantize, share=share, **noise)
        parts = {
            "loss": out.loss,
            "reconstruction_loss": out.reconstruction_loss,
            "ratio_loss": out.ratio_loss,
            "commitment_loss": out.commitment_loss,
            "keep_rate": out.keep_rate,
        }
        if warm_start is not None:
            contrast = features.new_zeros(())
            if warm_start > 0:
                contrast = contrast_loss(tokenizer, features, out.scores, outstanding, relative)
                contrast = contrast if share is None else contrast * share.images
            parts |= {"loss": out.loss + warm_start * contrast, "contrast_loss": contrast}
        if out.ids is not None:
            counts = torch.zeros(tokenizer.config.num_codes, dtype=torch.float64, device=out.ids.device)
            parts[COUNTS] = counts.index_add_(0, out.ids.clamp(min=0), (out.ids >= 0).to(counts.dtype))
        return parts


def features_of(tokenizer: LaVITTokenizer, batch: dict[str, Tensor]) -> Tensor:
    """The batch's features on the tokenizer's device, in float32 where they were cached in half precision."""
    device = tokenizer.quantize.embedding.weight.device
    if "features" in batch:
        features = batch["features"].to(device, non_blocking=True)
        return features.to(compute_dtype(features))
    return tokenizer.encode_features(batch["images"].to(device, non_blocking=True))


def look_ahead(
    tokenizer: LaVITTokenizer,
    batches: list[dict[str, Tensor]],
    *,
    tau: float,
    noise_scale: float,
    contrasted: bool,
    relative: float = 0.0,
) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
    """What the losses of stage 1 must know of all micro-batches of a step before the first is computed: how many
    patches are kept in each, and which patches stand out in all (contrasted; relative: of `contrast`). Costs a second
    run of the selector.

    Returns for each its features and the seeds of its noise, so that the same patches are kept again, and what `Step`
    wants beside them.
    """
    seen, counts, distances = [], [], []
    for batch in batches:
        features = features_of(tokenizer, batch)
        seeds = batch.get("seeds")
        if seeds is None:
            seeds = torch.randint(*SEED_RANGE, features.shape[:1], dtype=torch.int64, device=features.device)
        kept = tokenizer.select(features, seeds=seeds, tau=tau, noise_scale=noise_scale).cu_kept[-1]
        counts.append(torch.stack((torch.full_like(kept, len(features)), kept)))
        seen.append({"features": features, "seeds": seeds})
        if contrasted:
            distances.append(contrast(features, relative))
    factors, totals = distributed.shares(torch.stack(counts).double())
    keep_rate = totals[1] / (totals[0] * tokenizer.num_patches).clamp(min=1)
    told: list[dict[str, Any]] = [{"share": BatchShare(own[0], own[1], keep_rate)} for own in factors]
    if contrasted:
        together, first = distributed.gather_rows(torch.cat(distances).flatten())
        flags = most_outstanding(together, tokenizer.config.keep_rate)[first:]
        sizes = [distance.numel() for distance in distances]
        for one, own in zip(told, flags[: sum(sizes)].split(sizes), strict=True):
            one["outstanding"] = own
    return list(zip(seen, told, strict=True))


def contrast_loss(
    tokenizer: LaVITTokenizer,
    features: Tensor,
    scores: Tensor | None = None,
    outstanding: Tensor | None = None,
    relative: float = 0.0,
) -> Tensor:
    """Teaches the selector to like patches that differ from their neighbours (*derived*; the warm start).

    Cross-entropy of the selector's two classes with the target "keep" for the share ρ (keep_rate) of the batch's
    patches whose features lie farthest from the mean of their four neighbours. The share is that of the batch, so a
    richer image may keep more. features (B, N, C) -> scalar. scores: (B, N, 2) that the selector has for them already.
    outstanding: (B · N,) int64, 1 for the chosen patches, where the batch is a part of a larger one.
    """
    if outstanding is None:
        outstanding = most_outstanding(contrast(features, relative).flatten(), tokenizer.config.keep_rate)
    if scores is None:
        scores = tokenizer.token_predictor(tokenizer.positioned(features))
    return F.nll_loss(scores.flatten(0, 1), 1 - outstanding)  # class 0 means keep


def most_outstanding(distances: Tensor, share: float) -> Tensor:
    """(n,) -> (n,) int64: 1 for the `share` of the largest, at least one of them; 0 for the others."""
    count = max(1, round(share * distances.numel()))
    chosen = torch.zeros(distances.numel(), dtype=torch.int64, device=distances.device)
    return chosen.index_fill_(0, distances.topk(min(count, distances.numel())).indices, 1)


def contrast(features: Tensor, relative: float = 0.0) -> Tensor:
    """Distance of each patch's feature from the mean of its neighbours above, below, left and right, as far as they
    are there: (B, N, C) -> (B, N).

    relative: divided by the mean of the image's own distances to this power. 0: pale images get fewer of the batch's
    tokens than vivid ones, in proportion to nothing but their contrast; 1: all get about as many.
    """
    batch, patches, width = features.shape
    side = int(patches**0.5)
    grid = features.detach().float().view(batch, side, side, width)
    total, count = torch.zeros_like(grid), torch.zeros(side, side, 1, device=features.device)
    for axis in (1, 2):
        first, last = grid.narrow(axis, 0, side - 1), grid.narrow(axis, 1, side - 1)
        total.narrow(axis, 0, side - 1).add_(last)
        total.narrow(axis, 1, side - 1).add_(first)
        count.narrow(axis - 1, 0, side - 1).add_(1)
        count.narrow(axis - 1, 1, side - 1).add_(1)
    distances = (grid - total / count.clamp(min=1)).norm(dim=-1).view(batch, patches)
    if relative == 0:
        return distances
    return distances / distances.mean(dim=1, keepdim=True).clamp(min=1e-12) ** relative


# --------------------------------------------------------------------------------------------------- what is trained


def parameter_groups(tokenizer: LaVITTokenizer, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, with weight decay and without; freezes what stage 1 does not train."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in tokenizer.named_parameters():
        if name.startswith(UNTRAINED):
            parameter.requires_grad_(False)
            continue
        parameter.requires_grad_(True)
        small = parameter.dim() < 2 or name.endswith(EMBEDDINGS)
        (plain if small else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def train_selector(tokenizer: LaVITTokenizer, wanted: bool) -> None:
    """Lets the selector learn or freezes it, together with the position embedding in its input: a selector whose input
    still moved would not be frozen."""
    tokenizer.token_predictor.requires_grad_(wanted)
    if tokenizer.config.feature_position:
        tokenizer.feature_position.requires_grad_(wanted)
