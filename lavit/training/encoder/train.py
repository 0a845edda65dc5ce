"""An encoder of one's own. ``lavit train encoder``.

`train_encoder` is the whole of it; the loop is `lavit.training.engine.loop.train`, what is minimised is in `objective`,
images and captions are in `data`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from lavit.data.image_folder import ImageFiles
from lavit.data.image_sizes import sizes_line
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig
from lavit.tokenizer.processing import processor_for
from lavit.training.encoder.data import EncoderData, open_data
from lavit.training.encoder.objective import EncoderObjective, parameter_groups
from lavit.training.encoder.recipe import EncoderTrainingConfig
from lavit.training.engine import distributed, stage
from lavit.training.engine.identity import digest
from lavit.training.engine.loop import Run
from lavit.training.engine.recipe import check_folders
from lavit.training.engine.validation import fingerprint_of

__all__ = ["EncoderTrainingConfig", "EncoderTrainingResult", "measure_features", "train_encoder"]

logger = logging.getLogger(__name__)

MEASURED = 2048  # images that the statistics of the features are taken from


@dataclass
class EncoderTrainingResult(stage.Finished):
    """Rows of the history also have pixel_loss, pixel_r2, images_per_second and, by objective, masked_loss,
    contrastive_loss and matched (`EncoderObjective`). model: a tokenizer, of which the encoder and the statistics of
    its features are trained. skipped_images: (name, reason) of images and captions that could not be used."""

    model: LaVITTokenizer
    skipped_images: list[tuple[str, str]] = field(default_factory=list)


def train_encoder(
    config: EncoderTrainingConfig,
    *,
    model: LaVITTokenizer | None = None,
    progress: stage.Progress | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_changes: bool = False,
) -> EncoderTrainingResult:
    """Trains an encoder as `config` says, and leaves it frozen in a tokenizer that is otherwise new.

    model: a tokenizer whose encoder is trained in place, instead of the one that `config` names. progress, resume,
    overwrite, allow_changes, and what is raised and left as it was: as in `train_tokenizer`.
    """
    with stage.session(config.device) as session:
        _check_start(config, model)
        data, held_out = open_data(config)
        checkpoints, saved = session.open_output(config, resume, overwrite)

        stage.seed_everything(config.seed)
        sizes = checkpoints.folder if checkpoints is not None and saved is not None else None
        tokenizer = model if model is not None else _build(config, sizes)
        if tokenizer.config.external_encoder is not None:
            raise ValueError(f"model: expected an encoder of this library, got {tokenizer.encoder.source}")
        nn.Module.to(tokenizer, session.device)
        processor = processor_for(tokenizer.config.image_size, config.model, config.fit)
        if isinstance(data.dataset, ImageFiles) and distributed.rank() == 0:
            logger.info("%s", sizes_line(data.dataset.paths, (processor.size,) * 2, processor.fit))
        text_ids = None if data.captions is None else data.captions.size
        learner = EncoderObjective(tokenizer.encoder, tokenizer.config, config, text_ids).to(session.device)
        tokenizer.encoder.requires_grad_(True)
        groups = parameter_groups(learner.train(), config.optimizer.weight_decay)
        distributed.share(learner.state_dict().values())
        optimizer = torch.optim.AdamW(groups, betas=config.optimizer.betas, eps=config.optimizer.eps, fused=True)
        stage.seed_everything(config.seed + 1 + distributed.rank())  # from here on, every process draws its own masks
        with data.stream(config, processor) as stream:
            run = Run(learner, optimizer, stream, parts=_parts(data, processor.to_dict()))
            run.replica = distributed.replicate(learner, session.device)
            try:
                stop, history = stage.run_stage(
                    run,
                    lambda step, batch, _: step(data.with_captions(batch)),
                    config,
                    checkpoints,
                    saved,
                    progress,
                    validation=None if held_out is None else EncoderValidation(config, processor, held_out),
                    at_start=tokenizer.config.save_pretrained,
                    allow_changes=allow_changes,
                )
            finally:
                tokenizer.encoder.eval().requires_grad_(False)
            skipped = [(item.name, item.reason) for item in stream.skipped]
            unused = [] if held_out is None else held_out.bad
        statistics = partial(_measure, tokenizer, data, config, processor)
        if run.step >= config.loop.steps:  # a signal in the last step comes too late to stop the run
            statistics()
        if model is None:
            tokenizer.eval()
        path = stage.finish(run, config, _Measured(tokenizer, statistics), processor)
        return EncoderTrainingResult(
            tokenizer, [*skipped, *data.bad, *unused], history=history, path=path, stopped_by=stop.signal
        )


class EncoderValidation:
    """The parts of the loss of held-out images, moved and masked alike every time."""

    def __init__(self, config: EncoderTrainingConfig, processor: LaVITImageProcessor, held_out: EncoderData) -> None:
        self.config, self.processor, self.held_out = config, processor, held_out
        paths = getattr(held_out.dataset, "paths", None)
        of_shapes = f"shapes {config.seed} {len(held_out.dataset)}"
        self.fingerprint = of_shapes if paths is None else fingerprint_of(paths, held_out.dataset.root)

    def __call__(self, run: Run) -> dict[str, float]:
        torch.manual_seed(self.config.seed)  # whoever calls puts the generators back
        sums: dict[str, float] = {}
        count = 0
        with self.held_out.once(self.config, self.processor, shuffle=False) as batches:
            for batch in batches:
                images = len(batch["index"])
                for name, value in run.model(self.held_out.with_captions(batch)).items():
                    sums[name] = sums.get(name, 0.0) + float(value) * images
                count += images
        return {name: value / max(count, 1) for name, value in sums.items()}


class _Measured:
    """A tokenizer that is saved with the statistics of the encoder that it has just then: a run saves its last one, and
    maybe its best."""

    def __init__(self, tokenizer: LaVITTokenizer, statistics: Callable[[], None]) -> None:
        self.tokenizer, self.statistics, self.last = tokenizer, statistics, True

    def save_pretrained(self, folder: Path) -> None:
        state = {name: value.clone() for name, value in self.tokenizer.named_buffers()}
        if not self.last:
            self.statistics()
        self.tokenizer.save_pretrained(folder)
        for name, value in self.tokenizer.named_buffers():
            value.copy_(state[name])
        self.last = False


def _measure(
    tokenizer: LaVITTokenizer, data: EncoderData, config: EncoderTrainingConfig, processor: LaVITImageProcessor
) -> None:
    if tokenizer.config.standardize_features:
        with data.once(config, processor) as batches:
            measure_features(tokenizer, islice(batches, -(-MEASURED // config.loop.batch_size)))


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


def _check_start(config: EncoderTrainingConfig, model: LaVITTokenizer | None) -> None:
    if model is None:
        check_folders(config, "model")
        LaVITTokenizerConfig.preset(config.preset, **config.tokenizer)  # refuses unknown names and sizes


def _build(config: EncoderTrainingConfig, sizes: Path | None) -> LaVITTokenizer:
    """sizes: folder with those of a resumed run, whose checkpoint has the weights."""
    if sizes is not None:
        return LaVITTokenizer(LaVITTokenizerConfig.from_pretrained(sizes))
    if config.model is not None:
        return LaVITTokenizer.from_pretrained(config.model, **config.tokenizer)
    return LaVITTokenizer(LaVITTokenizerConfig.preset(config.preset, **config.tokenizer))


def _parts(data: EncoderData, processor: dict[str, object]) -> dict[str, str]:
    """What the encoder is learned beside: captions keep their ids over a resumption."""
    parts = {"processor": digest(processor)}
    if data.captions is not None:
        parts["captions"] = digest([("ids", data.captions.ids), ("count", data.captions.count)])
    return parts
