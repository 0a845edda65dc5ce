"""How a model writes captions and answers where its caller says nothing.

The settings are two of transformers' ``GenerationConfig``, in the model's folder and on the model:

    generation_config.json          ``model.generation_config``: captions
    answer_generation_config.json   ``model.answer_generation_config``: answers

of which ``num_beams``, ``min_new_tokens``, ``max_new_tokens``, ``length_penalty`` and ``early_stopping`` count. What
they do not say, or all of it where a model has none, is as in the release.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.utils import cached_file

from lavit.data.mixture import Sample, Source
from lavit.kernels import Loss, Segment

FILES = {"generation_config": "generation_config.json", "answer_generation_config": "answer_generation_config.json"}
"""Attribute of a model -> file of its folder."""

ATTRIBUTES = {"caption": "generation_config", "answer": "answer_generation_config"}

FLAGS = {
    "num_beams": "num_beams",
    "min_new": "min_new_tokens",
    "max_new": "max_new_tokens",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
}
"""Field of `TextSettings` -> transformers' name of it."""

LOOKED_AT = 4096
"""Samples of a kind, evenly over all, of which the lengths are taken."""


@dataclass(frozen=True)
class TextSettings:
    """Arguments of ``generate_text``, which describes them."""

    num_beams: int
    min_new: int
    max_new: int
    length_penalty: float
    early_stopping: bool = False

    def changed(self, **given: Any) -> TextSettings:
        """With what is given and not None. Of the two lengths one that is not given makes way for one that is."""
        said = {name: value for name, value in given.items() if value is not None}
        made = replace(self, **said)
        if "min_new" not in said:
            made = replace(made, min_new=min(made.min_new, made.max_new))
        if "max_new" not in said:
            made = replace(made, max_new=max(made.min_new, made.max_new))
        return made

    def as_config(self) -> GenerationConfig:
        """In transformers' form, which refuses what one beam has no use for."""
        flags = ["num_beams", "min_new", "max_new", *(["length_penalty", "early_stopping"] * (self.num_beams > 1))]
        return GenerationConfig(**{FLAGS[name]: getattr(self, name) for name in flags})


RELEASED = {"caption": TextSettings(2, 8, 36, 1.0), "answer": TextSettings(5, 2, 10, 0.0, early_stopping=True)}
"""The release's: 2 beams and 8 to 36 tokens for captions, 5 beams and 2 to 10 tokens for answers."""


def own_settings(model: Any, task: str) -> TextSettings:
    """What a model says, where it says something. task: "caption" or "answer".

    A model without settings ends the search for an answer early where ``config.answer_early_stopping`` says so.
    """
    settings = RELEASED[task]
    if task == "answer":
        settings = replace(settings, early_stopping=model.config.answer_early_stopping)
    config = getattr(model, ATTRIBUTES[task])
    # transformers also knows "never": not before nothing better can come, which is what False means here.
    said = {name: getattr(config, flag, None) for name, flag in FLAGS.items()}
    if said["early_stopping"] is not None:
        said["early_stopping"] = said["early_stopping"] is True
    return settings.changed(**said)


def carry_settings(model: Any, task: str, settings: TextSettings) -> None:
    """From now on the model says so."""
    setattr(model, ATTRIBUTES[task], settings.as_config())


# Learned from texts.


def learn_settings(
    model: Any, sources: Mapping[str, Source], shares: Mapping[str, float], *, goes_on: bool = False
) -> None:
    """Make a model carry the settings that suit the captions and answers of its training data.

    sources: samples by kind. shares: how much of each is learned; what is not learned changes nothing.
    A text may have from half the tokens of the shortest, at least one, up to the tokens of the longest and its end with
    a quarter of it more, at least four, as far as the model's context has room for them after the longest prompt. 5
    beams look for answers and 2 for captions, as in the release, and the likeliest text is taken; but of captions that
    have 8 tokens or more in the mean, which the release's have at least, the likeliest by token (length penalty 1):
    they are sentences, and the likeliest one would be too short.
    goes_on: the model has learned before. Then its own settings stay, and only lengths give way where these texts need
    it: the least to a lower one, the most to a higher one.
    """
    for task, kind in (("caption", "caption"), ("answer", "question")):
        source = sources.get(kind)
        pairs = [*_lengths(source)] if source is not None and shares.get(kind, 0) > 0 else []
        if not pairs:
            continue
        prompts, texts = zip(*pairs, strict=True)
        tokenizer = model.visual_tokenizer
        room = model.config.text_config.max_position_embeddings - (tokenizer.num_patches + 2) - max(prompts)
        found = fitted(task, texts, room)
        if goes_on:
            own = own_settings(model, task)
            least, most = min(own.min_new, found.min_new), max(own.max_new, found.max_new)
            found = replace(own, min_new=least, max_new=most)
        carry_settings(model, task, found)


def fitted(task: str, lengths: tuple[int, ...], room: int) -> TextSettings:
    """The settings for texts of these numbers of tokens, their ends not counted; see `learn_settings`."""
    shortest, longest, mean = min(lengths), max(lengths), sum(lengths) / len(lengths)
    least = max(1, shortest // 2)
    most = max(least, min(longest + 1 + max(4, longest // 4), room))
    released = RELEASED[task]
    sentences = task == "caption" and mean >= released.min_new
    return TextSettings(released.num_beams, least, most, 1.0 if sentences else 0.0)


def _lengths(source: Source) -> Iterator[tuple[int, int]]:
    """(tokens of text before it, its own without its end) of each text that the first samples' loss asks for."""
    count = min(len(source), LOOKED_AT)
    for place in range(count):
        sample: Sample = source[place * len(source) // count]
        texts = iter(sample.texts)
        before = 0
        for segment, loss in zip(sample.segments, sample.loss or (), strict=True):
            if segment != Segment.TEXT:
                continue
            length = len(next(texts))
            if loss == Loss.CONTENT:
                yield before, length - 1
                before = 0
            else:
                before = length


# Files.


def load_settings(model: Any, source: str | PathLike[Any], **hub: Any) -> None:
    """Give a model the settings of its folder, or of its repository; None where there is no file.

    hub: where and how to look, as ``from_pretrained`` has it. OSError for a file that is damaged.
    """
    for name, file in FILES.items():
        found = cached_file(str(source), file, _raise_exceptions_for_missing_entries=False, **hub)
        config = None if found is None else GenerationConfig.from_pretrained(Path(found).parent, file)
        setattr(model, name, config)


def save_settings(model: Any, folder: str | PathLike[Any]) -> None:
    """Write a model's settings into its folder, which keeps none of another model."""
    for name, file in FILES.items():
        config = getattr(model, name)
        if config is None:
            Path(folder, file).unlink(missing_ok=True)
        else:
            config.save_pretrained(folder, config_file_name=file)
