"""How the encoder, the statistics of its features and the codebook of stage 1 start."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lavit.released.files import ENCODER_FILE, read_tensors, tokenizer_folder
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig
from lavit.tokenizer.pretrained import check_fit, compare
from lavit.training.engine import distributed
from lavit.training.engine.metrics import progress_line
from lavit.training.engine.recipe import check_folders
from lavit.training.tokenizer.data import TrainingImages
from lavit.training.tokenizer.objective import features_of
from lavit.training.tokenizer.pretrain_encoder import pretrain_encoder
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig

logger = logging.getLogger(__name__)

MEASURED = 2048  # images that the statistics of the features are taken from


def check_start(config: TokenizerTrainingConfig) -> None:
    """ValueError or OSError for what the words of a configuration get wrong."""
    LaVITTokenizerConfig.preset(config.preset, **config.tokenizer)  # refuses unknown names and sizes that do not fit
    check_folders(config, "model")
    if config.encoder is not None and not Path(config.encoder).exists():
        raise FileNotFoundError(f"encoder: there is no file or folder {config.encoder}")
    if config.encoder is None and config.model is None and config.preset != "small":
        raise ValueError(
            f"encoder: the preset {config.preset} needs a pretrained encoder (EVA-CLIP ViT-g/14): "
            "--encoder DIR, the release's visual_tokenizer folder"
        )


def build(config: TokenizerTrainingConfig, sizes: Path | None) -> LaVITTokenizer:
    """The tokenizer that the configuration names. sizes: folder with those of a resumed run, whose checkpoint has the
    weights."""
    if sizes is not None:
        return LaVITTokenizer(LaVITTokenizerConfig.from_pretrained(sizes))
    if config.model is not None:
        return LaVITTokenizer.from_pretrained(config.model, **config.tokenizer)
    return LaVITTokenizer(LaVITTokenizerConfig.preset(config.preset, **config.tokenizer))


def prepare(config: TokenizerTrainingConfig, tokenizer: LaVITTokenizer, images: TrainingImages, pretrain: bool) -> None:
    """An encoder that knows something, and the statistics of its features."""
    if config.encoder is not None:
        load_encoder(tokenizer, config.encoder)
    elif pretrain and config.model is None:
        if distributed.rank() == 0:
            logger.info("no encoder is given: pretraining one on the shapes world, %d steps", config.encoder_steps)
            pretrain_encoder(tokenizer, steps=config.encoder_steps, seed=config.seed, progress=_log_encoder)
        distributed.share(tokenizer.state_dict().values())
    unset = bool((tokenizer.feature_mean == 0).all() and (tokenizer.feature_std == 1).all())
    if tokenizer.config.standardize_features and unset:
        with images.sample() as batches:
            measure_features(tokenizer, islice(batches, -(-MEASURED // config.loop.batch_size)))


def _log_encoder(row: dict[str, Any]) -> None:
    logger.info("encoder  %s  accuracy %.3f", progress_line(row, row["steps"]), row["accuracy"])


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
    check_fit(f"encoder: {found} does not fit the configuration", compare(tokenizer.encoder, state))
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
