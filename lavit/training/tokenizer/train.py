"""Stage 1: the dynamic visual tokenizer learns to describe an image in few codes. ``lavit train tokenizer``.

`train_tokenizer` is the whole of it; the loop is `lavit.training.engine.loop.train`, what is minimised is in
`objective`, how the encoder and the codebook start in `initialization`, the images are in `data`.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lavit.data import DataStream
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer
from lavit.training.engine import distributed, stage
from lavit.training.engine.identity import digest
from lavit.training.engine.loop import Run
from lavit.training.engine.schedule import Anneal, phase_at, phases
from lavit.training.tokenizer import initialization, objective
from lavit.training.tokenizer.data import TrainingImages, open_dataset, open_stream, processor_of
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig
from lavit.training.tokenizer.validation import TokenizerValidation

__all__ = ["TokenizerTrainingConfig", "TrainingResult", "save_model", "train_tokenizer"]


@dataclass
class TrainingResult(stage.Finished):
    """Rows of the history also have reconstruction_loss, ratio_loss, commitment_loss, keep_rate, images_per_second and,
    with quantisation, codes_used and perplexity; rows of held-out images have the same and val_cosine, with val_ before
    each name. skipped_images: (name, reason) of images that cannot be read."""

    model: LaVITTokenizer
    skipped_images: list[tuple[str, str]] = field(default_factory=list)


def train_tokenizer(
    config: TokenizerTrainingConfig,
    *,
    model: LaVITTokenizer | None = None,
    stream: Any = None,
    features: Tensor | None = None,
    progress: stage.Progress | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_changes: bool = False,
) -> TrainingResult:
    """Trains a tokenizer as `config` says.

    model: a tokenizer to train instead of the one that `config` names; its encoder is used as it is.
    stream: batches {"images": (B, 3, S, S)} or {"features": (B, N, C)} instead of the data that `config` names.
    features: (n, N, C) of `encode_features`, instead of either. progress: gets every row of metrics.
    resume: go on from the newest whole checkpoint in the output folder. CheckpointError where there is none, and where
        it was made with other parts or with settings that give it another meaning; allow_changes lets the settings be.
    overwrite: replace a run that the output folder holds already, which is otherwise a FileExistsError.
    Raises TrainingDiverged when the loss stays NaN or Inf, and LockedError while another run writes in the output
    folder. The caller's random generators are left as they were.
    """
    if stream is not None and features is not None:
        raise ValueError("stream, features: expected at most one of the two, got both")
    with stage.session(config.device) as session:
        device = session.device
        # What can be wrong with the words is found before anything is written, or an older run overwritten.
        if model is None:
            initialization.check_start(config, resume)
        if config.validation_share and (stream is not None or features is not None):
            raise ValueError("validation_share: expected 0 with a stream or features that are given")
        dataset, held_out = open_dataset(config) if stream is None and features is None else (None, None)
        resume = resume and not (model is None and initialization.in_own_encoder(config))  # which goes on by itself
        first = model is None and dataset is not None and initialization.trains_encoder(config)
        checkpoints, saved = session.open_output(config, resume, overwrite, ("encoder.",), encoder_first=first)

        stage.seed_everything(config.seed)
        sizes = checkpoints.folder if checkpoints is not None and saved is not None else None
        tokenizer = model if model is not None else initialization.build(config, sizes)
        nn.Module.to(tokenizer, device).train()
        tokenizer.encoder.eval()
        images = TrainingImages(config, tokenizer, dataset) if dataset is not None else None
        if saved is not None:
            tokenizer.load_state_dict(saved["model"])
        elif images is not None:
            stopped = initialization.prepare(config, tokenizer, images, model is None, overwrite)
            if stopped is not None:
                return TrainingResult(tokenizer, images.skipped, history=[], path=None, stopped_by=stopped)
        distributed.share(tokenizer.state_dict().values())
        validation = TokenizerValidation(config, tokenizer, held_out) if held_out is not None else None

        opened: DataStream | None = None
        if stream is None:
            stream = opened = images.stream() if images is not None else open_stream(features, "features", config)
        groups = objective.parameter_groups(tokenizer, config.optimizer.weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=config.optimizer.betas, eps=config.optimizer.eps, fused=True)
        run = Run(tokenizer, optimizer, stream)
        run.parts = {"processor": digest(processor_of(config, tokenizer).to_dict())}
        stage.seed_everything(config.seed + 1 + distributed.rank())  # from here on, every process draws its own noise
        phased = _Phases(config, tokenizer, device)
        with tokenizer.quantize.moving_with(optimizer), opened if opened is not None else nullcontext():
            stop, history = stage.run_stage(
                run,
                phased.step,
                config,
                checkpoints,
                saved,
                progress,
                before_step=phased.enter,
                look_ahead=phased.look_ahead,
                validation=validation,
                at_start=tokenizer.config.save_pretrained,
                allow_changes=allow_changes,
            )
        tokenizer.eval()
        path = stage.finish(run, config, tokenizer, processor_of(config, tokenizer))
        skipped = images.skipped if images is not None else []
        skipped += validation.images.skipped if validation is not None else []
        return TrainingResult(tokenizer, skipped, history=history, path=path, stopped_by=stop.signal)


class _Phases:
    """The step function of stage 1 and its changes of phase."""

    def __init__(self, config: TokenizerTrainingConfig, tokenizer: LaVITTokenizer, device: torch.device) -> None:
        self.config, self.tokenizer, self.device = config, tokenizer, device
        self.steps = config.loop.steps
        self.phases = phases(config.order, self.steps, config.first_phase)
        self.entered: str | None = None

    def enter(self, run: Run) -> None:
        tokenizer = self.tokenizer
        tokenizer.quantize.forget()  # whatever a skipped step has left
        phase = phase_at(run.step, self.phases)
        if phase.name == self.entered:
            return
        objective.train_selector(tokenizer, phase.train_selector)
        if phase.name != run.phase and phase.quantize and self.config.codebook == "kmeans":
            wanted = -(-self.config.vectors_per_code * tokenizer.config.num_codes // distributed.world_size())
            noise = self.config.noise.at(run.step, self.steps)
            stream: Any = run.stream
            initialization.start_codebook(tokenizer, stream, wanted, noise_scale=noise, seed=self.config.seed)
        run.phase = self.entered = phase.name
        # A new wrapper for every phase: it counts on a gradient from each parameter that wants one.
        run.replica = distributed.replicate(objective.Step(tokenizer), self.device)

    def step(self, model: nn.Module, batch: dict[str, Tensor], step: int, **told: Any) -> dict[str, Tensor]:
        quantize = phase_at(step, self.phases).quantize
        warm = {"warm_start": self.warm_start(step), "relative": self.config.warm_start.relative}
        return model(batch, quantize=quantize, **warm, **self.noise(step), **told)

    def look_ahead(self, batches: list[dict[str, Tensor]], step: int) -> list[tuple[Any, dict[str, Any]]]:
        contrasted, relative = bool(self.warm_start(step)), self.config.warm_start.relative
        return objective.look_ahead(
            self.tokenizer, batches, contrasted=contrasted, relative=relative, **self.noise(step)
        )

    def noise(self, step: int) -> dict[str, float]:
        return {"tau": self.config.tau.at(step, self.steps), "noise_scale": self.config.noise.at(step, self.steps)}

    def warm_start(self, step: int) -> float | None:
        """Weight of the contrast loss; None where there is none to report."""
        warm = self.config.warm_start
        if warm.fraction == 0 or not phase_at(step, self.phases).train_selector:
            return None
        return Anneal(warm.weight, 0.0, warm.fraction).at(step, self.steps)


def save_model(tokenizer: LaVITTokenizer, processor: LaVITImageProcessor, folder: Path) -> None:
    """Saves the model and its image processor into a folder, whole or not at all."""
    stage.save_model(folder, tokenizer, processor)
