"""Stage 2: the language model learns to read and write images. ``lavit train language``.

`train_language` is the whole of it; the loop is `lavit.training.engine.loop.train`, the samples are in `data`, mixed
and packed by `lavit.data.mixture`, and `lavit.LaVIT` makes packed rows of them and computes the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lavit.data.mixture import Mixture, PackedStream
from lavit.language.configuration import PRESETS
from lavit.language.model import LaVIT
from lavit.language.processing import LaVITProcessor
from lavit.language.text_settings import learn_settings
from lavit.language.text_tokenizer import train_text_tokenizer
from lavit.shapes.edits import instructions
from lavit.shapes.questions import sentences
from lavit.shapes.world import SHAPES_WORLD
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer
from lavit.tokenizer.processing import processor_for
from lavit.training.engine import distributed, stage
from lavit.training.engine.identity import digest
from lavit.training.engine.loop import Run
from lavit.training.engine.recipe import check_folders
from lavit.training.language.data import FolderData, ImageStore, folder_data, open_folder, shapes_data
from lavit.training.language.objective import Step, label_counts, parameter_groups, scale_rows, weigh_rows
from lavit.training.language.recipe import LanguageTrainingConfig
from lavit.training.language.shares import planned, tell
from lavit.training.language.validation import held_out_samples

__all__ = ["ImageStore", "LanguageTrainingConfig", "LanguageTrainingResult", "train_language"]


@dataclass
class LanguageTrainingResult(stage.Finished):
    """Rows of the history also have text_loss, image_loss, labels, tokens (of a row) and tokens_per_second; those of
    held-out samples val_loss, val_text_loss, val_image_loss and val_exact. Of a folder the first row, of step 0, has
    "sources": of each kind of sample how many there are, their share and the epochs to come.
    skipped_items: (name, reason) of what could not be used of a folder: entries of its files, and images that cannot be
    read."""

    model: LaVIT
    processor: LaVITProcessor
    skipped_items: list[tuple[str, str]] = field(default_factory=list)


def train_language(
    config: LanguageTrainingConfig,
    *,
    tokenizer: LaVITTokenizer | None = None,
    processor: LaVITImageProcessor | None = None,
    store: ImageStore | None = None,
    progress: stage.Progress | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_changes: bool = False,
) -> LanguageTrainingResult:
    """Trains a LaVIT as `config` says.

    tokenizer, processor: a visual tokenizer with its image processor, instead of the folder that `config` names; it
    becomes a part of the model. store: what `shapes_data` shows, already tokenized. progress, resume, overwrite,
    allow_changes, and what is raised and left as it was: as in `train_tokenizer`.
    """
    with stage.session(config.device) as session:
        device = session.device
        folder = _check_start(config, tokenizer, store)
        checkpoints, saved = session.open_output(config, resume, overwrite, constant=("visual_tokenizer.",))

        stage.seed_everything(config.seed)
        if folder is not None:
            words = list(folder.train.sentences())
        else:
            words = [*sentences(), *(instructions() if config.mixture.edit > 0 else [])]
        model, both = _build(config, tokenizer, processor, words)
        shown: Any = config.prompt_images or model.config.prompt_images
        model.config.prompt_images = shown
        config = replace(config, prompt_images=shown)
        nn.Module.to(model, device).train()
        distributed.share(model.state_dict().values())
        parts = _parts(model, both)  # before a checkpoint puts its own visual tokenizer in: the labels are of this one
        bad: list[tuple[str, str]] = []
        shares, opening = config.mixture.shares, None
        if folder is None:
            sources, store = shapes_data(config, model.visual_tokenizer, both, store)
        else:
            sources, store, bad = folder_data(config, folder.train, model.visual_tokenizer, both)
            shares = folder.shares
            opening = {"sources": planned(config, sources, shares, store.length)}
            if distributed.rank() == 0:
                tell(opening["sources"])
        learn_settings(model, sources, shares, goes_on=config.model is not None)
        validation = held_out_samples(config, folder, model, both, shares)
        mixture = Mixture(
            sources,
            shares,
            seed=config.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        stream = PackedStream(mixture, config.token_budget, store.length, window=config.window)

        groups = parameter_groups(model, weight_decay=config.optimizer.weight_decay, **asdict(config.rates))
        optimizer = torch.optim.AdamW(groups, betas=config.optimizer.betas, eps=config.optimizer.eps, fused=True)
        scale_rows(optimizer)
        run = Run(model, optimizer, stream, parts=parts)
        run.replica = distributed.replicate(Step(model, store), device)
        regress = model.config.image_objective == "regress"
        counts_of = partial(label_counts, of_image=store.length, vocabulary=model.vocabulary, regress=regress)
        stop, history = stage.run_stage(
            run,
            lambda step, row, _, **told: step(row, **told),
            config,
            checkpoints,
            saved,
            progress,
            look_ahead=partial(weigh_rows, counts_of=counts_of, device=device),
            validation=validation,
            opening=opening,
            allow_changes=allow_changes,
        )
        model.eval()
        path = stage.finish(run, config, model, both)
        bad += validation.bad if validation is not None else []
        return LanguageTrainingResult(model, both, bad, history=history, path=path, stopped_by=stop.signal)


def _check_start(
    config: LanguageTrainingConfig, tokenizer: LaVITTokenizer | None, store: ImageStore | None
) -> FolderData | None:
    """What can be wrong with the words is found before anything is written, or an older run overwritten. Returns what
    a folder of images holds, None for the shapes world."""
    if config.preset not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {config.preset!r}")
    config.check_sources(tokenizer is not None)
    check_folders(config, "model", "tokenizer", "language_model", "validation")
    if config.data == SHAPES_WORLD:
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
        processor = processor_for(tokenizer.config.image_size, config.tokenizer)
    if config.language_model is not None:
        text = AutoTokenizer.from_pretrained(config.language_model)
        language = LlamaForCausalLM.from_pretrained(config.language_model)
    else:
        text = train_text_tokenizer(words, config.text_vocabulary)
        # An image that is shown, one that is asked for, and the words between them.
        most = max(PRESETS[config.preset]["max_position_embeddings"], 2 * tokenizer.num_patches + 256)
        own = {**PRESETS[config.preset], "max_position_embeddings": most}
        sizes = {**own, **config.text_config, "vocab_size": len(text)}
        special = {"bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id}
        language = LlamaForCausalLM(LlamaConfig(**sizes, **special, pad_token_id=text.pad_token_id))
    settings: dict[str, Any] = {"image_objective": config.objective, "image_sampling": config.sampling}
    model = LaVIT.from_parts(language, tokenizer, text_size=len(text), **settings)
    return model, LaVITProcessor(processor, text, len(text))


def _parts(model: LaVIT, processor: LaVITProcessor) -> dict[str, str]:
    """Marks of what the model is learned beside: the labels are codes of this tokenizer and ids of this text tokenizer,
    and the weights mean something in a language model of this configuration only."""
    ignored = ("_name_or_path", "transformers_version", "_attn_implementation", "attn_implementation", "dtype")
    language = {k: v for k, v in model.config.text_config.to_dict().items() if k not in ignored}
    vocabulary = processor.tokenizer.get_vocab()
    return {
        "visual tokenizer": digest(sorted(model.visual_tokenizer.state_dict().items())),
        "image processor": digest(processor.image_processor.to_dict()),
        "text tokenizer": digest(vocabulary),
        "language model": digest(language),
    }
