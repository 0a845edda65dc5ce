"""What an edit shows of the image to change: its features, or its codes; and the model is asked in the same way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_pixels import tokenizer as visual

from lavit.data.sequences import Sequencing
from lavit.kernels import Loss, Segment
from lavit.language.processing import LaVITProcessor
from lavit.training.engine.checkpoint import CheckpointError
from lavit.training.language.data import sequencing
from lavit.training.language.recipe import LanguageTrainingConfig
from lavit.training.language.train import train_language

LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


def settings(**changes) -> LanguageTrainingConfig:
    words = {"loop.steps": 2, "loop.log_every": 1, "scenes": 12, "edited": 8, "mixture.edit": 3.0, "token_budget": 160}
    words |= {"window": 16, "text_vocabulary": 300, "device": "cpu", "tensorboard": False}
    own = {} if "model" in changes else {"text_config": LLAMA}
    return LanguageTrainingConfig.recipe("small", words | own | changes)


@pytest.mark.parametrize("shown, segment", [("features", Segment.FEATURES), ("codes", Segment.CODES)])
def test_the_image_to_change_is_shown_and_carries_no_loss(shown, segment):
    order = Sequencing(lambda text: [7], 2, edits_of=shown)
    sample = order.edit(3, "make it red", 4)
    assert sample.segments == (segment, Segment.TEXT, Segment.CODES) and sample.images == (3, 4)
    assert sample.loss == (Loss.NONE, Loss.CONTENT, Loss.ALL)
    assert order.sample("caption", 3, "red", "").segments[0] == Segment.FEATURES
    assert (order.fingerprint == Sequencing(lambda text: [7], 2).fingerprint) == (shown == "features")


def test_a_model_is_asked_as_it_was_taught(tmp_path: Path):
    result = train_language(settings(output=str(tmp_path / "a"), prompt_images="codes"), tokenizer=visual())
    assert result.model.config.prompt_images == "codes"
    assert json.loads((tmp_path / "a" / "config.json").read_text())["prompt_images"] == "codes"
    again = train_language(settings(model=str(tmp_path / "a")))
    assert again.model.config.prompt_images == "codes"
    other = train_language(settings(model=str(tmp_path / "a"), prompt_images="features"))
    assert other.model.config.prompt_images == "features"
    assert train_language(settings(), tokenizer=visual()).model.config.prompt_images == "features"


def test_a_released_model_keeps_its_way_whether_or_not_the_run_was_stopped(tmp_path: Path):
    """It draws after bare codes; its edits are trained on features."""
    made = train_language(settings(output=str(tmp_path / "made")), tokenizer=visual()).model
    made.config.prompt_images = "bare_codes"
    made.save_pretrained(tmp_path / "made")
    words = {"model": str(tmp_path / "made"), "output": str(tmp_path / "run"), "loop.checkpoint_every": 1}
    first = train_language(settings(**words))
    resumed = train_language(settings(**words, **{"loop.steps": 3}), resume=True)
    from_file = LanguageTrainingConfig.read(tmp_path / "run" / "training.yaml")
    again = train_language(replace(from_file, loop=replace(from_file.loop, steps=4)), resume=True)
    for result in (first, resumed, again):
        assert result.model.config.prompt_images == "bare_codes"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["prompt_images"] == "bare_codes"


def test_a_run_does_not_go_on_with_edits_of_another_kind(tmp_path: Path):
    words = {"output": str(tmp_path), "loop.checkpoint_every": 1}
    train_language(settings(prompt_images="codes", **words), tokenizer=visual())
    with pytest.raises(CheckpointError, match="prompt_images: 'codes', now"):
        train_language(settings(**words, **{"loop.steps": 3}), tokenizer=visual(), resume=True)
    longer = settings(prompt_images="codes", **words, **{"loop.steps": 3})
    assert train_language(longer, tokenizer=visual(), resume=True).history[-1]["step"] == 3


def test_samples_follow_the_setting(tmp_path: Path):
    train_language(settings(output=str(tmp_path)), tokenizer=visual())
    processor = LaVITProcessor.from_pretrained(tmp_path)
    ways = (None, "features", "bare_codes", "codes")
    kinds = [sequencing(settings(prompt_images=shown), processor).edits_of for shown in ways]
    assert kinds == ["features"] * 3 + ["codes"]
