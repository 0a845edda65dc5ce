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
from lavit.shapes.world import SHAPES_WORLD, SIZE
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig
from lavit.tokenizer.configuration import PRESETS
from lavit.tokenizer.encoder_names import is_external
from lavit.tokenizer.external_encoder import check_external, open_external
from lavit.tokenizer.pretrained import check_fit, compare
from lavit.tokenizer.processing import FITS
from lavit.training.encoder.recipe import EncoderTrainingConfig
from lavit.training.encoder.train import MEASURED, measure_features, train_encoder
from lavit.training.engine import config as configuration
from lavit.training.engine import distributed, replaced
from lavit.training.engine.checkpoint import Checkpoints
from lavit.training.engine.identity import settings_of
from lavit.training.engine.metrics import progress_line
from lavit.training.engine.recipe import CONFIG_FILE, check_folders
from lavit.training.tokenizer.data import TrainingImages
from lavit.training.tokenizer.objective import features_of
from lavit.training.tokenizer.pretrain_encoder import pretrain_encoder
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig

logger = logging.getLogger(__name__)

STEPS_ON_SHAPES = 400


def check_start(config: TokenizerTrainingConfig, resume: bool = False) -> None:
    """ValueError or OSError for what the words of a configuration get wrong. resume: an encoder of another library is
    in the checkpoint, wherever it came from."""
    check_folders(config, "model")
    if is_external(config.encoder):
        if config.model is not None:
            raise ValueError(f"encoder: expected none of another library beside a model, got {config.encoder}")
        if not resume:
            check_external(str(config.encoder))
        return  # the sizes are its own
    sizes = LaVITTokenizerConfig.preset(config.preset, **config.tokenizer)  # refuses names and sizes that do not fit
    if config.encoder is not None:
        if not Path(config.encoder).exists():
            raise FileNotFoundError(f"encoder: there is no file or folder {config.encoder}")
        if config.model is None:
            _check_sizes(Path(config.encoder), sizes)
    if config.encoder is None and config.model is None and not config.preset.startswith("small"):
        raise ValueError(
            f"encoder: the preset {config.preset} needs a pretrained encoder (EVA-CLIP ViT-g/14): "
            "--encoder DIR, the release's visual_tokenizer folder"
        )


SIZES = ("image_size", "patch_size", "hidden_size", "encoder_depth")


def _check_sizes(encoder: Path, sizes: LaVITTokenizerConfig) -> None:
    """ValueError for the folder of a tokenizer whose encoder has other sizes, before its tensors are named one by
    one."""
    file = encoder / "config.json"
    if not file.is_file() or f'"{LaVITTokenizerConfig.model_type}"' not in file.read_text(encoding="utf-8"):
        return
    own = LaVITTokenizerConfig.from_pretrained(encoder)
    wanted, found = ([getattr(one, name) for name in SIZES] for one in (sizes, own))
    if found != wanted:
        presets = {name: LaVITTokenizerConfig.preset(name) for name in PRESETS}
        alike = [name for name, one in presets.items() if [getattr(one, size) for size in SIZES] == found]
        hint = f"; say --preset {alike[0]}" if alike else ""
        told = [", ".join(map("{} {}".format, SIZES, values)) for values in (found, wanted)]
        raise ValueError(f"encoder: {encoder} has {told[0]}, and the tokenizer {told[1]}{hint}")


def build(config: TokenizerTrainingConfig, sizes: Path | None) -> LaVITTokenizer:
    """The tokenizer that the configuration names. sizes: folder with those of a resumed run, whose checkpoint has the
    weights."""
    if sizes is not None:
        return LaVITTokenizer(LaVITTokenizerConfig.from_pretrained(sizes))
    if config.model is not None:
        return LaVITTokenizer.from_pretrained(config.model, **config.tokenizer)
    if not is_external(config.encoder):
        return LaVITTokenizer(LaVITTokenizerConfig.preset(config.preset, **config.tokenizer))
    external, weights = open_external(str(config.encoder), config.tokenizer.get("image_size"))
    changes = {**external["size"], "encoder_heads": 1, **config.tokenizer, "external_encoder": external}
    tokenizer = LaVITTokenizer(LaVITTokenizerConfig.preset(config.preset, **changes))
    tokenizer.encoder.model.load_state_dict(weights)
    told = ", ".join(f"{name} {size}" for name, size in external["size"].items())
    logger.info("the encoder is %s: %s, %d patches", config.encoder, told, tokenizer.num_patches)
    return tokenizer


def prepare(
    config: TokenizerTrainingConfig, tokenizer: LaVITTokenizer, images: TrainingImages, pretrain: bool, overwrite: bool
) -> int | None:
    """An encoder that knows something, and the statistics of its features.

    overwrite: train an encoder anew where one is in the place of the run's own. Returns the signal that stopped its
    training.
    """
    begins_anew = pretrain and config.model is None
    if config.encoder is not None:
        if not is_external(config.encoder):  # which `build` has loaded
            load_encoder(tokenizer, config.encoder)
    elif begins_anew:
        if not trains_encoder(config):  # the shapes world has labels to learn from
            steps = STEPS_ON_SHAPES if config.encoder_steps is None else config.encoder_steps
            if distributed.rank() == 0:
                logger.info("no encoder is given: pretraining one on the shapes world, %d steps", steps)
                pretrain_encoder(tokenizer, steps=steps, seed=config.seed, progress=_log_encoder)
            distributed.share(tokenizer.state_dict().values())
        elif (stopped := train_own_encoder(config, tokenizer, overwrite)) is not None:
            return stopped
    unset = bool((tokenizer.feature_mean == 0).all() and (tokenizer.feature_std == 1).all())
    if tokenizer.config.standardize_features and unset:
        with images.sample() as batches:
            measure_features(tokenizer, islice(batches, -(-MEASURED // config.loop.batch_size)))
    if begins_anew and tokenizer.config.standardize_features and config.standardize == "image":
        share_statistics(tokenizer)
    return None


def share_statistics(tokenizer: LaVITTokenizer) -> None:
    """One mean and deviation of each channel for all places, of those that the places have by themselves."""
    means, deviations = tokenizer.feature_mean, tokenizer.feature_std
    mean = means.mean(0)
    deviation = (deviations.square() + (means - mean).square()).mean(0).sqrt()
    tokenizer.set_feature_statistics(mean.expand_as(means), deviation.expand_as(deviations))


def _log_encoder(row: dict[str, Any]) -> None:
    accuracy = f"  accuracy {row['accuracy']:.3f}" if "accuracy" in row else ""
    logger.info("encoder  %s%s", progress_line(row, row["steps"]), accuracy)


def trains_encoder(config: TokenizerTrainingConfig) -> bool:
    """Whether a run trains an encoder on its data first, in a folder of its own."""
    if config.encoder is not None or config.model is not None:
        return False
    size = LaVITTokenizerConfig.preset(config.preset, **config.tokenizer).image_size
    return config.data != SHAPES_WORLD or size != SIZE


def train_own_encoder(config: TokenizerTrainingConfig, tokenizer: LaVITTokenizer, overwrite: bool) -> int | None:
    """Trains the tokenizer's encoder on the run's own data, in a run of its own below the output folder: what a signal
    or a crash has stopped goes on, what is finished is taken. Returns the signal that stopped it, None at the end.

    FileExistsError where an encoder of other settings is there, which may be anybody's."""
    recipe = encoder_recipe(config)
    steps, resume = recipe.loop.steps, False
    if recipe.output is not None and not overwrite:
        if not _is_run_of(recipe):
            if replaced.holds_run(Path(recipe.output)):
                raise FileExistsError(
                    f"encoder: {recipe.output}, where this run would train one, holds a run of other settings; "
                    f"--encoder {recipe.output} takes its encoder, --overwrite replaces it"
                )
        elif (Path(recipe.output) / "config.json").is_file():
            logger.info("no encoder is given: taking that of %s, which was trained for this run", recipe.output)
            load_encoder(tokenizer, recipe.output)
            return None
        else:
            resume = Checkpoints(Path(recipe.output) / "checkpoints").latest() is not None
            overwrite = not resume  # a run of these settings with nothing whole in it
    way = "going on with the training of one" if resume else "training one"
    logger.info("no encoder is given: %s on %s, %d steps (lavit train encoder)", way, config.data, steps)
    if config.output is not None and distributed.rank() == 0:
        Path(config.output).mkdir(parents=True, exist_ok=True)
        configuration.save(config, Path(config.output) / CONFIG_FILE)  # --resume reads it
    return train_encoder(
        recipe, model=tokenizer, progress=_log_encoder, resume=resume, overwrite=overwrite
    ).stopped_by


def encoder_recipe(config: TokenizerTrainingConfig) -> EncoderTrainingConfig:
    """Of the training of an encoder for a run of stage 1 that is given none."""
    shared: dict[str, Any] = {
        name: getattr(config, name) for name in "tokenizer data fit scenes workers seed device tensorboard".split()
    }
    # What is held out from the one is held out from the other.
    shared |= {name: getattr(config, name) for name in "validation validation_share validation_images".split()}
    shared |= {"loop.log_every": config.loop.log_every}
    shared["output"] = None if config.output is None else str(Path(config.output) / replaced.ENCODER)
    if config.encoder_steps is not None:
        shared["loop.steps"] = config.encoder_steps
    return EncoderTrainingConfig.recipe(config.preset, shared)


def in_own_encoder(config: TokenizerTrainingConfig) -> bool:
    """Whether the run in the output folder was stopped while its encoder was trained."""
    if config.output is None or config.encoder is not None or config.model is not None:
        return False
    begun = (Path(config.output) / replaced.ENCODER / CONFIG_FILE).is_file()
    return begun and not replaced.holds_run(Path(config.output))


def _is_run_of(recipe: EncoderTrainingConfig) -> bool:
    """Whether the recipe's output folder is of a run with the same settings on the same data, its pictures made squares
    in the same way. What was in the folder of the data then is not asked."""
    try:
        before = EncoderTrainingConfig.read(Path(str(recipe.output)) / CONFIG_FILE)
    except ValueError:  # no such file, or that of another stage
        return False
    one, other = ((own.data, own.model, own.loop.steps, own.fit or FITS[0]) for own in (before, recipe))
    return one == other and settings_of(before) == settings_of(recipe)


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
