"""Stage 2: the language model learns to read and write images. ``lavit train language``.

`train_language` is the whole of it; the loop is `lavit.training.loop.train`, the samples are mixed and packed by
`lavit.data.mixture`, and `lavit.LaVIT` makes packed rows of them and computes the loss.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lavit.data.captioned import CaptionedFolder
from lavit.data.edits import instructions
from lavit.data.mixture import Mixture, PackedRow, PackedStream, Source
from lavit.data.questions import sentences
from lavit.language.configuration import PRESETS
from lavit.language.model import LaVIT
from lavit.language.parameters import parameter_groups, scale_rows
from lavit.language.processing import LaVITProcessor
from lavit.language.text import train_text_tokenizer
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer
from lavit.training import distributed, runs
from lavit.training.checkpoint import Checkpoints, generator_state, set_generator_state
from lavit.training.language_data import ImageStore, folder_data, open_folder, shapes_data
from lavit.training.language_recipe import LanguageTrainingConfig, language_recipe_file
from lavit.training.loop import Run
from lavit.training.recipe import SHAPES

__all__ = ["ImageStore", "LanguageTrainingConfig", "LanguageTrainingResult", "main", "train_language"]

logger = logging.getLogger(__name__)


@dataclass
class LanguageTrainingResult:
    """What a run leaves behind.

    history: rows with step, loss, text_loss, image_loss, tokens (of a row), fill_rate, lr, grad_norm, skipped,
        tokens_per_second. path: folder of the saved model, None if nothing was written or the run was stopped.
    stopped_by: the signal that stopped the run, or None. skipped_items: (name, reason) of what could not be used of a
    folder: entries of its files, and images that cannot be read.
    """

    model: LaVIT
    processor: LaVITProcessor
    history: list[dict[str, Any]]
    path: Path | None
    stopped_by: int | None = None
    skipped_items: list[tuple[str, str]] = field(default_factory=list)


class Step(nn.Module):
    """One packed row of stage 2 as a module, so that DistributedDataParallel sees the whole of it."""

    def __init__(self, model: LaVIT, store: ImageStore) -> None:
        super().__init__()
        self.model = model
        self._store = [store]  # no part of the module

    def forward(self, row: PackedRow) -> dict[str, Tensor]:
        features, tokens = self._store[0].take(row.images)
        out = self.model(row.text, row.segments, loss=row.loss, features=features, tokens=tokens)
        return {
            "loss": out.loss,
            "text_loss": out.text_loss,
            "image_loss": out.image_loss,
            "labels": out.num_labels,
            "tokens": out.loss.new_full((), row.tokens),  # where the others are, without a copy
        }


def train_language(
    config: LanguageTrainingConfig,
    *,
    tokenizer: LaVITTokenizer | None = None,
    processor: LaVITImageProcessor | None = None,
    store: ImageStore | None = None,
    progress: runs.Progress | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> LanguageTrainingResult:
    """Trains a LaVIT as `config` says.

    tokenizer, processor: a visual tokenizer with its image processor, instead of the folder that `config` names; it
    becomes a part of the model. store: what `shapes_data` shows, already tokenized. progress: gets every row of
    metrics. resume, overwrite: as in `train_tokenizer`.
    Raises TrainingDiverged when the loss stays NaN or Inf. The caller's random generators are left as they were.
    """
    device = distributed.pick_device(config.device)
    generators = generator_state()
    try:
        with distributed.process_group(device):
            return _train(config, device, tokenizer, processor, store, progress, resume, overwrite)
    finally:
        set_generator_state(generators)


def _train(
    config: LanguageTrainingConfig,
    device: torch.device,
    tokenizer: LaVITTokenizer | None,
    processor: LaVITImageProcessor | None,
    store: ImageStore | None,
    progress: runs.Progress | None,
    resume: bool,
    overwrite: bool,
) -> LanguageTrainingResult:
    folder = _check_start(config, tokenizer, store)
    output = Path(config.output) if config.output is not None else None
    checkpoints = None
    saved: dict[str, Any] | None = None
    if output is not None:
        constant = ("visual_tokenizer.",)
        checkpoints = Checkpoints(output / "checkpoints", keep=config.loop.keep_checkpoints, constant=constant)
        saved = runs.open_output(config, output, checkpoints, resume, overwrite)

    runs.seed_everything(config.seed)
    if folder is not None:
        words = list(folder.sentences())
    else:
        words = [*sentences(), *(instructions() if config.mixture.edit > 0 else [])]
    model, both = _build(config, tokenizer, processor, words)
    nn.Module.to(model, device).train()
    distributed.share(model.state_dict().values())
    bad: list[tuple[str, str]] = []
    if folder is None:
        sources, store = shapes_data(config, model.visual_tokenizer, both, store)
    else:
        sources, store, bad = folder_data(config, folder, model.visual_tokenizer, both)
    stream = _stream(config, sources, store)

    rates = asdict(config.rates)
    groups = parameter_groups(model, weight_decay=config.optimizer.weight_decay, **rates)
    optimizer = torch.optim.AdamW(groups, betas=config.optimizer.betas, eps=config.optimizer.eps, fused=True)
    scale_rows(optimizer)
    run = Run(model, optimizer, stream)
    run.replica = _replica(Step(model, store), device)
    if saved is not None:
        run.load(saved)

    stop, history = runs.drive(
        run, lambda step, row, _: step(row), config, checkpoints, progress, resumed=saved is not None
    )
    model.eval()
    path = output if run.step >= config.loop.steps and output is not None else None
    if path is not None and distributed.rank() == 0:
        runs.save_whole(path, model, both)
    distributed.barrier()
    return LanguageTrainingResult(model, both, history, path, stop.signal, bad)


def _replica(step: Step, device: torch.device) -> nn.Module:
    if not distributed.is_distributed():
        return step
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(step, device_ids=ids, broadcast_buffers=False)


def _stream(config: LanguageTrainingConfig, sources: Mapping[str, Source], store: ImageStore) -> PackedStream:
    mixture = Mixture(
        sources,
        asdict(config.mixture),
        seed=config.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    return PackedStream(mixture, config.token_budget, store.length, window=config.window)


def _check_start(
    config: LanguageTrainingConfig, tokenizer: LaVITTokenizer | None, store: ImageStore | None
) -> CaptionedFolder | None:
    """What can be wrong with the words is found before anything is written, or an older run overwritten. Returns what
    a folder of images holds, None for the shapes world."""
    if config.preset not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {config.preset!r}")
    if config.model is None and config.tokenizer is None and tokenizer is None:
        raise ValueError("tokenizer: expected the folder that stage 1 left (lavit train tokenizer), got none")
    if config.preset != "small" and config.model is None and config.language_model is None:
        raise ValueError(f"language_model: the preset {config.preset} starts from a LLaMA: --language-model FOLDER")
    for name in ("model", "tokenizer", "language_model"):
        folder = getattr(config, name)
        if folder is not None and not Path(folder).is_dir():
            raise FileNotFoundError(f"{name}: there is no folder {folder}")
    if config.data == SHAPES:
        return None
    if store is not None:
        raise ValueError("store: expected none with a folder of images, whose features have a cache of their own")
    return open_folder(config)


def _build(
    config: LanguageTrainingConfig,
    tokenizer: LaVITTokenizer | None,
    processor: LaVITImageProcessor | None,
    words: Sequence[str],
) -> tuple[LaVIT, LaVITProcessor]:
    """The model with its text tokenizer and image processor. words: texts to train a new text tokenizer on."""
    if config.model is not None:
        model = LaVIT.from_pretrained(config.model)
        model.config.image_sampling |= config.sampling
        return model, LaVITProcessor.from_pretrained(config.model)
    if tokenizer is None:
        tokenizer = LaVITTokenizer.from_pretrained(config.tokenizer)
    if processor is None:
        processor = runs.processor_of(config.tokenizer, tokenizer)
    if config.language_model is not None:
        text = AutoTokenizer.from_pretrained(config.language_model)
        language = LlamaForCausalLM.from_pretrained(config.language_model)
    else:
        text = train_text_tokenizer(words, config.text_vocabulary)
        sizes = {**PRESETS[config.preset], **config.text_config, "vocab_size": len(text)}
        special = {"bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id}
        language = LlamaForCausalLM(LlamaConfig(**sizes, **special, pad_token_id=text.pad_token_id))
    settings: dict[str, Any] = {"image_objective": config.objective, "image_sampling": config.sampling}
    model = LaVIT.from_parts(language, tokenizer, text_size=len(text), **settings)
    return model, LaVITProcessor(processor, text, len(text))


# ----------------------------------------------------------------------------------------------------------- command

USAGE = """usage: lavit train language --tokenizer FOLDER [--preset small|lavit-g] [--language-model FOLDER]
                            [--data shapes|FOLDER] [--text FILE] [--output FOLDER] [--config FILE]
                            [--key value ...] [--resume | --overwrite]

Stage 2: trains the language model, and the merger and projector through which it reads images, on captions, questions,
requests for images, edits of images, images alone and text, packed without padding. The settings come from the preset's
recipe or, instead, from --config, then from --key value; the section may be left out where one only has the name
(--steps for --loop.steps). --resume goes on from the newest checkpoint in the output folder, with the settings saved
there.

--data FOLDER holds images/ and captions.json (COCO captions or Karpathy's split); optional are questions.json and
answers.json (VQAv2's questions and annotations), edits.jsonl ({"image": FILE, "text": ..., "result": FILE} a line: an
image, what is asked for with it, and the image that shows it) and text.jsonl ({"text": ...} a line) or text.txt.
Of what is not there, the share of the mixture must be 0: --mixture.question 0 --mixture.edit 0. Images that cannot be
read are named and left out; so are, without a word, edits between images that are not of the split. The features of all
images are kept in the output folder, memory-mapped: N x C x 4 bytes an image, 1.4 MB for EVA-CLIP's 256 patches of 1408
channels, 140 GB for 100 000 images; without an output folder they are in memory, as are the tokens in every process.

Ends with 0; with 1 when the loss stays NaN or Inf; with 128 + n when signal n stopped it (the checkpoint is written).

settings [default]:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """``lavit train language``; returns the exit code. ValueError and OSError for wrong use or input."""
    return runs.command(
        "language", argv, LanguageTrainingConfig, USAGE, language_recipe_file, train_language, _print_end
    )


def _print_end(config: LanguageTrainingConfig, result: LanguageTrainingResult) -> None:
    runs.tell_skipped(f"items of {config.data} could not be used and were left out", result.skipped_items)
    if result.stopped_by is not None and result.path is None:
        print(f"stopped by signal {result.stopped_by}; go on with --resume --output {config.output}")
    else:
        print(f"the model is in {result.path}")
