"""Stage 1: the dynamic visual tokenizer learns to describe an image in few codes. ``lavit train tokenizer``.

`train_tokenizer` is the whole of it; the loop is `lavit.training.loop.train`, the tokenizer's own parts are in
`lavit.training.stage1`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lavit.data import DataStream, ImageFolder
from lavit.data.shapes import ShapesWorld
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig
from lavit.training import distributed, runs, stage1
from lavit.training.checkpoint import Checkpoints, generator_state, set_generator_state
from lavit.training.features import encoder_tensors, open_or_build
from lavit.training.loop import Run
from lavit.training.metrics import progress_line
from lavit.training.recipe import SHAPES, TokenizerTrainingConfig, recipe_file
from lavit.training.schedule import Anneal, phase_at, phases

__all__ = ["TokenizerTrainingConfig", "TrainingResult", "main", "save_model", "train_tokenizer"]

logger = logging.getLogger(__name__)

MEASURED = 2048  # images that the statistics of the features are taken from


@dataclass
class TrainingResult:
    """What a run leaves behind.

    history: rows with step, phase, loss, reconstruction_loss, ratio_loss, commitment_loss, keep_rate, codes_used,
        perplexity, lr, grad_norm, skipped (bad steps so far), images_per_second; without quantisation there is no
        codes_used and perplexity. path: folder of the saved model, None if nothing was written or the run was stopped.
    stopped_by: the signal that stopped the run, or None. skipped_images: (name, reason) of images that cannot be read.
    """

    model: LaVITTokenizer
    history: list[dict[str, Any]]
    path: Path | None
    stopped_by: int | None = None
    skipped_images: list[tuple[str, str]] = field(default_factory=list)


def train_tokenizer(
    config: TokenizerTrainingConfig,
    *,
    model: LaVITTokenizer | None = None,
    stream: Any = None,
    features: Tensor | None = None,
    progress: runs.Progress | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainingResult:
    """Trains a tokenizer as `config` says.

    model: a tokenizer to train instead of the one that `config` names; its encoder is used as it is.
    stream: batches {"images": (B, 3, S, S)} or {"features": (B, N, C)} instead of the data that `config` names.
    features: (n, N, C) of `encode_features`, instead of either. progress: gets every row of metrics.
    resume: go on from the newest checkpoint in the output folder; from the start if there is none.
    overwrite: replace a run that the output folder holds already, which is otherwise a FileExistsError.
    Raises TrainingDiverged when the loss stays NaN or Inf. The caller's random generators are left as they were.
    """
    if stream is not None and features is not None:
        raise ValueError("stream, features: expected at most one of the two, got both")
    device = distributed.pick_device(config.device)
    generators = generator_state()
    try:
        with distributed.process_group(device):
            return _train(config, device, model, stream, features, progress, resume, overwrite)
    finally:
        set_generator_state(generators)


def _train(
    config: TokenizerTrainingConfig,
    device: torch.device,
    model: LaVITTokenizer | None,
    stream: Any,
    features: Tensor | None,
    progress: runs.Progress | None,
    resume: bool,
    overwrite: bool,
) -> TrainingResult:
    # What can be wrong with the words is found before anything is written, or an older run overwritten.
    if model is None:
        _check_start(config)
    dataset = _open_dataset(config) if stream is None and features is None else None
    output = Path(config.output) if config.output is not None else None
    checkpoints = None
    saved: dict[str, Any] | None = None
    if output is not None:
        checkpoints = Checkpoints(output / "checkpoints", keep=config.loop.keep_checkpoints, constant=("encoder.",))
        saved = runs.open_output(config, output, checkpoints, resume, overwrite)

    runs.seed_everything(config.seed)
    tokenizer = model if model is not None else _build(config, output if saved else None)
    nn.Module.to(tokenizer, device).train()
    tokenizer.encoder.eval()
    data = _Data(config, tokenizer, dataset) if dataset is not None else None
    if saved is not None:
        tokenizer.load_state_dict(saved["model"])
    elif data is not None:
        _prepare(config, tokenizer, data, pretrain=model is None)
    distributed.share(tokenizer.state_dict().values())
    if checkpoints is not None and distributed.rank() == 0 and saved is None:
        tokenizer.config.save_pretrained(checkpoints.folder)

    opened: DataStream | None = None
    if stream is None:
        stream = opened = data.stream() if data is not None else _stream(features, "features", config)
    groups = stage1.parameter_groups(tokenizer, config.optimizer.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=config.optimizer.betas, eps=config.optimizer.eps, fused=True)
    run = Run(tokenizer, optimizer, stream, written=stage1.moved_by_forward(tokenizer))
    runs.seed_everything(config.seed + 1 + distributed.rank())  # from here on, every process draws its own noise
    if saved is not None:
        run.load(saved)

    stage, resumed = _Stage(config, device), saved is not None
    try:
        stop, history = runs.drive(
            run, stage.step, config, checkpoints, progress, resumed=resumed, before_step=stage.enter_phase
        )
    finally:
        if opened is not None:
            opened.close()
    tokenizer.eval()
    finished = run.step >= config.loop.steps
    path = output if finished and output is not None else None
    if path is not None and distributed.rank() == 0:
        save_model(tokenizer, processor_of(config, tokenizer), path)
    distributed.barrier()
    return TrainingResult(tokenizer, history, path, stop.signal, data.skipped if data is not None else [])


class _Stage:
    """The step function of stage 1 and its changes of phase."""

    def __init__(self, config: TokenizerTrainingConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.steps = config.loop.steps
        self.phases = phases(config.order, self.steps, config.first_phase)
        self.entered: str | None = None

    def enter_phase(self, run: Run) -> None:
        phase = phase_at(run.step, self.phases)
        if phase.name == self.entered:
            return
        tokenizer = run.model
        assert isinstance(tokenizer, LaVITTokenizer)
        stage1.train_selector(tokenizer, phase.train_selector)
        if phase.name != run.phase and phase.quantize and self.config.codebook == "kmeans":
            wanted = -(-self.config.vectors_per_code * tokenizer.config.num_codes // distributed.world_size())
            noise = self.config.noise.at(run.step, self.steps)
            stage1.start_codebook(tokenizer, run.stream, wanted, noise_scale=noise, seed=self.config.seed)  # type: ignore[arg-type]
        run.phase = self.entered = phase.name
        step: nn.Module = stage1.Step(tokenizer)
        if distributed.is_distributed():
            # A new wrapper for every phase: it counts on a gradient from each parameter that wants one. The codebook
            # keeps its ranks alike by itself.
            ids = [self.device.index] if self.device.type == "cuda" else None
            step = DistributedDataParallel(step, device_ids=ids, broadcast_buffers=False)
        run.replica = step

    def step(self, model: nn.Module, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        config = self.config
        warm = None
        if config.warm_start.fraction > 0:
            warm = Anneal(config.warm_start.weight, 0.0, config.warm_start.fraction).at(step, self.steps)
        phase = phase_at(step, self.phases)
        return model(
            batch,
            quantize=phase.quantize,
            tau=config.tau.at(step, self.steps),
            noise_scale=config.noise.at(step, self.steps),
            warm_start=warm if phase.train_selector else None,
        )


# ---------------------------------------------------------------------------------------------------- model and data


def _check_start(config: TokenizerTrainingConfig) -> None:
    LaVITTokenizerConfig.preset(config.preset, **config.tokenizer)  # refuses unknown names and sizes that do not fit
    if config.model is not None and not Path(config.model).is_dir():
        raise FileNotFoundError(f"model: there is no folder {config.model}")
    if config.encoder is not None and not Path(config.encoder).exists():
        raise FileNotFoundError(f"encoder: there is no file or folder {config.encoder}")
    if config.encoder is None and config.model is None and config.preset != "small":
        raise ValueError(
            f"encoder: the preset {config.preset} needs a pretrained encoder (EVA-CLIP ViT-g/14): "
            "--encoder DIR, the release's visual_tokenizer folder"
        )


def _open_dataset(config: TokenizerTrainingConfig) -> Any:
    """The images that the configuration names: a uint8 array (n, 32, 32, 3) or the files of a folder."""
    if config.data == SHAPES:
        return ShapesWorld(config.seed, "train").scenes(config.scenes).images
    if not Path(config.data).is_dir():
        raise FileNotFoundError(f"data: there is no folder {config.data}")
    return ImageFolder(config.data)


def _build(config: TokenizerTrainingConfig, resumed: Path | None) -> LaVITTokenizer:
    """The tokenizer that the configuration names; of a resumed run only its sizes, the checkpoint has the weights."""
    if resumed is not None:
        return LaVITTokenizer(LaVITTokenizerConfig.from_pretrained(resumed / "checkpoints"))
    if config.model is not None:
        return LaVITTokenizer.from_pretrained(config.model, **config.tokenizer)
    return LaVITTokenizer(LaVITTokenizerConfig.preset(config.preset, **config.tokenizer))


def _prepare(config: TokenizerTrainingConfig, tokenizer: LaVITTokenizer, data: _Data, pretrain: bool) -> None:
    """An encoder that knows something, and the statistics of its features."""
    if config.encoder is not None:
        stage1.load_encoder(tokenizer, config.encoder)
    elif pretrain and config.model is None:
        if distributed.rank() == 0:
            from lavit.training.encoder import pretrain_encoder

            logger.info("no encoder is given: pretraining one on the shapes world, %d steps", config.encoder_steps)
            pretrain_encoder(tokenizer, steps=config.encoder_steps, seed=config.seed, progress=_log_encoder)
        distributed.share(tokenizer.state_dict().values())
    if tokenizer.config.standardize_features and _is_unset(tokenizer):
        with data.sample() as batches:
            stage1.measure_features(tokenizer, islice(batches, -(-MEASURED // config.loop.batch_size)))


def _is_unset(tokenizer: LaVITTokenizer) -> bool:
    return bool((tokenizer.feature_mean == 0).all() and (tokenizer.feature_std == 1).all())


class _Data:
    """The images that the configuration names."""

    def __init__(self, config: TokenizerTrainingConfig, tokenizer: LaVITTokenizer, dataset: Any) -> None:
        self.config, self.tokenizer, self.dataset = config, tokenizer, dataset
        self.processor = processor_of(config, tokenizer)
        self._skipped: dict[str, str] = {}
        self._streams: list[DataStream] = []

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of the images that could not be read so far."""
        seen = {item.name: item.reason for stream in self._streams for item in stream.skipped}
        return list((self._skipped | seen).items())

    def sample(self) -> DataStream:
        """One pass over the images in random order, the same on every process."""
        return self._remember(
            DataStream(
                self.dataset,
                self.config.loop.batch_size,
                transform=self.processor,
                seed=self.config.seed,
                epochs=1,
                workers=self.config.workers,
            )
        )

    def stream(self, progress: Callable[[int, int], None] | None = None) -> DataStream:
        """The training batches: images, or their features from the cache."""
        config, tokenizer = self.config, self.tokenizer
        if not config.cache.enabled:
            return self._remember(_stream(self.dataset, "images", config, self.processor))
        root = config.cache.folder or (Path(config.output) / "features" if config.output is not None else None)
        if root is None:
            raise ValueError("cache.folder: expected a folder for the features, since the run has no output folder")
        device = tokenizer.quantize.embedding.weight.device
        cache = open_or_build(
            root,
            lambda images: tokenizer.encode_features(images.to(device)),
            encoder_tensors(tokenizer, self.processor),
            self.dataset,
            transform=self.processor,
            dtype=getattr(torch, config.cache.dtype),
            batch_size=config.loop.batch_size,
            workers=config.workers,
            progress=progress,
        )
        self._skipped |= {name: reason for _, name, reason in cache.skipped}
        return _stream(cache.values, "features", config)

    def _remember(self, stream: DataStream) -> DataStream:
        self._streams.append(stream)
        return stream


def _stream(dataset: Any, key: str, config: TokenizerTrainingConfig, transform: Any = None) -> DataStream:
    return DataStream(
        dataset,
        config.loop.batch_size,
        key=key,
        transform=transform,
        seed=config.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        workers=config.workers if transform is not None else 0,
    )


def processor_of(config: TokenizerTrainingConfig, tokenizer: LaVITTokenizer) -> LaVITImageProcessor:
    """The image processor of the model that the run started from, else CLIP's with the tokenizer's size."""
    return runs.processor_of(config.model, tokenizer)


# ------------------------------------------------------------------------------------------------------------ output


def save_model(tokenizer: LaVITTokenizer, processor: LaVITImageProcessor, folder: Path) -> None:
    """Saves the model and its image processor into a folder, whole or not at all."""
    runs.save_whole(folder, tokenizer, processor)


# ----------------------------------------------------------------------------------------------------------- command

USAGE = """usage: lavit train tokenizer [--preset small|lavit-g] [--data FOLDER|shapes] [--output FOLDER]
                             [--config FILE] [--key value ...] [--resume | --overwrite]

Stage 1: trains the dynamic visual tokenizer. The settings come from the preset's recipe or, instead, from --config,
then from --key value; the section may be left out where one only has the name (--steps for --loop.steps).
--resume goes on from the newest checkpoint in the output folder, with the settings saved there. A run under torchrun
uses all its processes: torchrun --nproc-per-node 8 -m lavit.cli train tokenizer --data FOLDER --output FOLDER
Ends with 0; with 1 when the loss stays NaN or Inf; with 128 + n when signal n stopped it (the checkpoint is written).

settings [default]:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """``lavit train tokenizer``; returns the exit code. ValueError and OSError for wrong use or input."""
    return runs.command(
        "tokenizer", argv, TokenizerTrainingConfig, USAGE, recipe_file, train_tokenizer, _print_end
    )


def _log_encoder(row: dict[str, Any]) -> None:
    logger.info("encoder  %s  accuracy %.3f", progress_line(row, row["steps"]), row["accuracy"])


def _print_end(config: TokenizerTrainingConfig, result: TrainingResult) -> None:
    runs.tell_skipped("images could not be read and were skipped", result.skipped_images)
    if result.stopped_by is not None and result.path is None:
        print(f"stopped by signal {result.stopped_by}; go on with --resume --output {config.output}")
    else:
        print(f"the tokenizer is in {result.path}; try: lavit tokenize IMAGE --model {result.path}")
