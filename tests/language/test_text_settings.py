"""Laws of a model's own settings: what its folder says is what it does where the caller says nothing, and what training
makes it say fits the texts that it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from speaking import new_model, new_processor, picture
from transformers import GenerationConfig

from lavit.data.sequences import ListedSource, Sequencing
from lavit.kernels import Ragged
from lavit.language import LaVIT, inference
from lavit.language.text_settings import (
    FILES,
    LOOKED_AT,
    RELEASED,
    TextSettings,
    carry_settings,
    fitted,
    learn_settings,
    own_settings,
)

NAMES = TextSettings(2, 1, 9, 0.0)


@pytest.fixture(scope="module")
def processor():
    return new_processor()


@pytest.fixture
def model(processor):
    return new_model(processor)


@pytest.fixture
def written(monkeypatch) -> list[dict[str, Any]]:
    """What the search is asked for."""
    seen: list[dict[str, Any]] = []

    def written(language_model, vocabulary, prompts, *, eos_id, **settings):
        seen.append(settings)
        return Ragged.from_list([torch.tensor([5])] * prompts.batch_size)

    monkeypatch.setattr(inference, "generate_text", written)
    return seen


def files(folder: Path) -> set[str]:
    return {name for name in FILES.values() if (folder / name).exists()}


# ------------------------------------------------------------------------------------------------------------- carried


def test_a_model_writes_as_its_folder_says_where_the_caller_says_nothing(model, processor, written, tmp_path):
    carry_settings(model, "caption", NAMES)
    carry_settings(model, "answer", TextSettings(3, 1, 4, 0.5, early_stopping=True))
    model.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).max_new_tokens == 9  # as transformers reads it
    own = LaVIT.from_pretrained(tmp_path).double()
    own.caption([picture()], processor)
    own.answer([picture()], ["what?"], processor)
    own.caption([picture()], processor, num_beams=1, min_new=0, max_new=3, length_penalty=2.0, early_stopping=True)
    own.answer([picture()], ["what?"], processor, early_stopping=False)
    caption = {"num_beams": 2, "min_new": 1, "max_new": 9, "length_penalty": 0.0, "early_stopping": False}
    answer = {"num_beams": 3, "min_new": 1, "max_new": 4, "length_penalty": 0.5, "early_stopping": True}
    given = {"num_beams": 1, "min_new": 0, "max_new": 3, "length_penalty": 2.0, "early_stopping": True}
    assert written == [caption, answer, given, {**answer, "early_stopping": False}]
    own.save_pretrained(tmp_path / "again")
    for name in FILES.values():
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_folder_without_settings_is_read_as_before_and_gets_none(model, processor, written, tmp_path):
    model.save_pretrained(tmp_path)
    assert not files(tmp_path)
    own = LaVIT.from_pretrained(tmp_path).double()
    assert own.generation_config is None and own.answer_generation_config is None
    own.caption([picture()], processor)
    assert TextSettings(**written[0]) == RELEASED["caption"]
    carry_settings(own, "answer", NAMES)
    own.save_pretrained(tmp_path)
    assert files(tmp_path) == {"answer_generation_config.json"}
    model.save_pretrained(tmp_path)  # has none: nor has the folder, or another model would be read than was saved
    assert not files(tmp_path)
    carry_settings(own, "caption", NAMES)
    own.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not files(tmp_path / "other")


def test_what_a_file_leaves_open_is_as_in_the_release_and_a_damaged_one_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"max_new_tokens": 5, "early_stopping": "never"}))
    own = LaVIT.from_pretrained(tmp_path)
    assert own_settings(own, "caption") == TextSettings(2, 5, 5, 1.0)  # the release's 8 make way
    (tmp_path / "answer_generation_config.json").write_text('{"num_beams": ')
    with pytest.raises(OSError, match="answer_generation_config.json"):
        LaVIT.from_pretrained(tmp_path)


@pytest.mark.parametrize("beams", [1, 4])
def test_any_settings_survive_the_file(model, tmp_path, beams):
    """transformers refuses to write a length penalty, or when to stop, of one beam, to which both are nothing."""
    own = TextSettings(beams, 0, 7, 0.5, early_stopping=True)
    carry_settings(model, "caption", own)
    model.save_pretrained(tmp_path)
    found = own_settings(LaVIT.from_pretrained(tmp_path), "caption")
    assert (found.num_beams, found.min_new, found.max_new) == (beams, 0, 7) and (found == own or beams == 1)


def test_of_the_own_lengths_one_makes_way_for_what_is_given():
    own = TextSettings(2, 8, 36, 1.0)
    assert own.changed(max_new=4, num_beams=None) == TextSettings(2, 4, 4, 1.0)
    assert own.changed(min_new=40) == TextSettings(2, 40, 40, 1.0)
    assert own.changed(min_new=9, max_new=3) == TextSettings(2, 9, 3, 1.0)  # the search refuses it by name


# ------------------------------------------------------------------------------------------------------------- learned


@pytest.mark.parametrize(
    "task, lengths, room, expected",
    [
        ("answer", (1, 1, 3), 500, TextSettings(5, 1, 3 + 1 + 4, 0.0)),
        ("caption", (2, 3, 4), 500, TextSettings(2, 1, 4 + 1 + 4, 0.0)),
        ("caption", (8, 12, 40), 500, TextSettings(2, 4, 40 + 1 + 10, 1.0)),
        ("caption", (4, 12), 500, TextSettings(2, 2, 12 + 1 + 4, 1.0)),  # 8 in the mean
        ("caption", (8, 12, 40), 45, TextSettings(2, 4, 45, 1.0)),
        ("caption", (8, 12, 40), -3, TextSettings(2, 4, 4, 1.0)),
    ],
)
def test_lengths_have_head_room_on_both_sides(task, lengths, room, expected):
    assert fitted(task, lengths, room) == expected


def word(text: str) -> list[int]:
    """A token a word."""
    return [len(one) for one in text.split()]


def sources(captions=(), answers=()) -> dict[str, ListedSource]:
    order = Sequencing(word, 2)
    told = [(0, text, "") for text in captions]
    asked = [(0, "what is it now", text) for text in answers]
    return {"caption": ListedSource("caption", told, order), "question": ListedSource("question", asked, order)}


BOTH = {"caption": 1.0, "question": 1.0}


def test_settings_are_learned_from_the_texts_that_carry_loss(model):
    learn_settings(model, sources(["a b", "a b c"], ["yes"]), BOTH)
    assert own_settings(model, "caption") == TextSettings(2, 1, 3 + 1 + 4, 0.0)
    assert own_settings(model, "answer") == TextSettings(5, 1, 1 + 1 + 4, 0.0)


def test_what_is_not_learned_gets_no_settings(model):
    learn_settings(model, sources(["a b"], ["yes"]), {"caption": 0.0, "question": 1.0})
    assert model.generation_config is None and model.answer_generation_config is not None
    learn_settings(model, sources(), BOTH)
    assert model.generation_config is None


def test_the_longest_text_fits_the_context_after_the_longest_prompt(model):
    """96 positions, 16 patches between two markers, "Question: what is it now Answer:" in 6 tokens."""
    learn_settings(model, sources([], ["yes " * 80]), BOTH)
    assert own_settings(model, "answer").max_new == 96 - 18 - 6


def test_a_model_that_goes_on_keeps_its_own_but_for_lengths_that_do_not_fit(model):
    carry_settings(model, "caption", TextSettings(4, 2, 20, 0.5, early_stopping=True))
    learn_settings(model, sources(["a b c d", "a b c d e f"]), BOTH, goes_on=True)
    assert own_settings(model, "caption") == TextSettings(4, 2, 20, 0.5, early_stopping=True)
    learn_settings(model, sources(["a", "b " * 30]), BOTH, goes_on=True)
    assert own_settings(model, "caption") == TextSettings(4, 1, 30 + 1 + 7, 0.5, early_stopping=True)
    # One that says nothing did as the release does.
    learn_settings(model, sources([], ["yes"]), BOTH, goes_on=True)
    assert own_settings(model, "answer") == TextSettings(5, 1, 10, 0.0)


def test_many_texts_are_looked_at_evenly(model):
    encoded = []
    order = Sequencing(lambda text: encoded.append(text) or [1], 2)
    many = ListedSource("caption", [(0, "a", "")] * (3 * LOOKED_AT + 1), order)
    learn_settings(model, {"caption": many}, BOTH)
    assert len(encoded) == LOOKED_AT
    first = ListedSource("caption", [(0, "a " * (30 if i == 0 else 2), "") for i in range(9000)], Sequencing(word, 2))
    learn_settings(model, {"caption": first}, BOTH)
    assert own_settings(model, "caption").max_new == 30 + 1 + 7
