"""The parts of stage 1 that know the tokenizer: its step, what is trained, how its encoder and codebook start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from lavit.hub import ENCODER_FILE, read_tensors, tokenizer_folder
from lavit.kernels.types import compute_dtype
from lavit.tokenizer import LaVITTokenizer
from lavit.tokenizer.strict import describe_tensors
from lavit.training.metrics import COUNTS

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
        self, batch: dict[str, Tensor], *, quantize: bool, tau: float, noise_scale: float, warm_start: float | None
    ) -> dict[str, Tensor]:
        """batch: "images" or "features" -> scalars and, when quantising, the use of the codes (K,).

        warm_start: weight of the contrast loss in this step; None where the run has no warm start.
        """
        tokenizer = self.tokenizer
        features = features_of(tokenizer, batch)
        out = tokenizer(features=features, tau=tau, noise_scale=noise_scale, quantize=quantize)
        parts = {
            "loss": out.loss,
            "reconstruction_loss": out.reconstruction_loss,
            "ratio_loss": out.ratio_loss,
            "commitment_loss": out.commitment_loss,
            "keep_rate": out.keep_rate,
        }
        if warm_start is not None:
            contrast = contrast_loss(tokenizer, features) if warm_start > 0 else features.new_zeros(())
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


def contrast_loss(tokenizer: LaVITTokenizer, features: Tensor) -> Tensor:
    """Teaches the selector to like patches that differ from their neighbours (*derived*; the warm start).

    Cross-entropy of the selector's two classes with the target "keep" for the share ρ (keep_rate) of the batch's
    patches whose features lie farthest from the mean of their four neighbours. The share is that of the batch, so a
    richer image may keep more. features (B, N, C) -> scalar.
    """
    target = contrast(features)
    count = max(1, round(tokenizer.config.keep_rate * target.numel()))
    chosen = torch.zeros(target.numel(), dtype=torch.int64, device=features.device)
    chosen.index_fill_(0, target.flatten().topk(min(count, target.numel())).indices, 1)
    scores = tokenizer.token_predictor(tokenizer.positioned(features)).flatten(0, 1)  # class 0 means keep
    return F.nll_loss(scores, 1 - chosen)


def contrast(features: Tensor) -> Tensor:
    """Distance of each patch's feature from the mean of its neighbours above, below, left and right, as far as they
    are there: (B, N, C) -> (B, N)."""
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
    return (grid - total / count.clamp(min=1)).norm(dim=-1).view(batch, patches)


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


def moved_by_forward(tokenizer: LaVITTokenizer) -> list[Tensor]:
    """The codebook and its statistics, which a training forward pass moves."""
    return [tokenizer.quantize.embedding.weight, *tokenizer.quantize.buffers()]


def train_selector(tokenizer: LaVITTokenizer, wanted: bool) -> None:
    """Lets the selector learn or freezes it, together with the position embedding in its input: a selector whose input
    still moved would not be frozen."""
    tokenizer.token_predictor.requires_grad_(wanted)
    if tokenizer.config.feature_position:
        tokenizer.feature_position.requires_grad_(wanted)


# ------------------------------------------------------------------------------------------------- encoder and codebook


def load_encoder(tokenizer: LaVITTokenizer, path: str | Path) -> None:
    """Fills the encoder, and the feature statistics where the file has them, from a pretrained one.

    path: a folder saved by `LaVITTokenizer.save_pretrained`, one of the release, or a file (.safetensors, .bin) of the
    encoder's tensors, with or without the prefix "encoder.". Raises FileNotFoundError for no such file and ValueError
    naming all tensors that are missing, unexpected or of another shape.
    """
    found = Path(path)
    if found.is_dir():
        places = (found / "model.safetensors", tokenizer_folder(found) / ENCODER_FILE)
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise FileNotFoundError(f"encoder: {path} holds neither model.safetensors nor {ENCODER_FILE}")
        found = file
    elif not found.is_file():
        raise FileNotFoundError(f"encoder: there is no file or folder {path}")
    state = load_file(found) if found.suffix == ".safetensors" else read_tensors(found)
    if tokenizer.config.standardize_features and "feature_mean" in state:
        tokenizer.set_feature_statistics(state["feature_mean"], state["feature_std"])
    prefixed = {name.removeprefix("encoder."): t for name, t in state.items() if name.startswith("encoder.")}
    state = prefixed or state
    wanted = {name: tensor.shape for name, tensor in tokenizer.encoder.state_dict().items()}
    wrong = [
        f"{name} (file {tuple(tensor.shape)}, model {tuple(wanted[name])})"
        for name, tensor in state.items()
        if name in wanted and tensor.shape != wanted[name]
    ]
    message = describe_tensors(wanted.keys() - state.keys(), state.keys() - wanted.keys(), wrong)
    if message:
        raise ValueError(f"encoder: {found} does not fit the configuration: {message}")
    tokenizer.encoder.load_state_dict(state)


@torch.no_grad()
def measure_features(tokenizer: LaVITTokenizer, batches: Iterator[dict[str, Tensor]]) -> None:
    """Sets the mean and deviation, for each position and channel, that `encode_features` removes."""
    device = tokenizer.feature_mean.device
    total = torch.zeros_like(tokenizer.feature_mean, dtype=torch.float64)
    squares, count = torch.zeros_like(total), 0
    for batch in batches:
        features = tokenizer.encoder(batch["images"].to(device)).double()
        total += features.sum(0)
        squares += features.square().sum(0)
        count += len(features)
    if count < 2:
        raise ValueError(f"data: expected at least 2 images to measure the features with, got {count}")
    mean = total / count
    tokenizer.set_feature_statistics(mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float())


@torch.no_grad()
def start_codebook(
    tokenizer: LaVITTokenizer, stream: Iterator[dict[str, Tensor]], wanted: int, *, noise_scale: float, seed: int
) -> None:
    """k-means start of the codebook on the vectors of real images, taken from the stream until there are `wanted`.

    The author: k-means start. BEiT v2's 10 cosine iterations (*derived*). The selection is made as in the step that
    follows, with the noise scaled by `noise_scale`.
    """
    vectors: list[Tensor] = []
    have, tried = 0, 0
    training = tokenizer.training
    tokenizer.eval()
    while have < wanted and tried < 10 * wanted:  # a selector that keeps next to nothing must not read for ever
        features = features_of(tokenizer, next(stream))
        features = features[features.isfinite().flatten(1).all(1)]
        uniform = torch.rand(*features.shape[:2], 2, device=features.device).clamp(1e-7, 1 - 1e-7)
        found = tokenizer.latents(features=features, noise=-noise_scale * torch.log(-torch.log(uniform)))
        vectors.append(found.values[: int(found.cu_seqlens[-1])])
        have += len(vectors[-1])
        tried += features.shape[0] * features.shape[1]
    tokenizer.train(training)
    if not have:
        raise ValueError("codebook: the selector keeps no patch, so there is nothing to start the codebook from")
    tokenizer.quantize.initialize(torch.cat(vectors), iterations=10, seed=seed)
