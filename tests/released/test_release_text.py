"""Captions and answers: prompts, scores and texts as the release's own code made them, with its transformers 4.33."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from release_models import golden, lists, new_lavit, new_processor, pictures, rows
from release_recipe import ENDING, EOS, TEXT_SIZE, questions

from lavit.kernels import Ragged
from lavit.language import LaVIT, inference
from lavit.language.text_generation import generate_text

PROCESSOR = new_processor()


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Ragged, Ragged]]:
    """(prompts, ids) of every call of the search."""
    seen: list[tuple[Ragged, Ragged]] = []

    def spy(language_model: Any, vocabulary: Any, prompts: Ragged, **settings: Any) -> Ragged:
        seen.append((prompts, generate_text(language_model, vocabulary, prompts, **settings)))
        return seen[-1][1]

    monkeypatch.setattr(inference, "generate_text", spy)
    return seen


@pytest.fixture(scope="module", params=["", "_ending"])
def ending(request: pytest.FixtureRequest) -> tuple[str, LaVIT]:
    """The model, and one whose texts end more often."""
    model = new_lavit()
    if request.param:
        with torch.no_grad():
            model.language_model.lm_head.weight[EOS] *= ENDING
    return request.param, model


def write(model: LaVIT, kind: str, count: int) -> list[str]:
    images = pictures(*range(count))
    if kind == "captions":
        return model.caption(images, PROCESSOR)
    if kind == "greedy":
        return model.caption(images, PROCESSOR, num_beams=1)
    if kind == "long_answers":
        return model.answer(images, questions(count), PROCESSOR, max_new=16, length_penalty=1.0)
    return model.answer(images, questions(count), PROCESSOR)


@pytest.mark.parametrize("kind", ["captions", "answers", "long_answers", "greedy"])
def test_texts_are_the_releases(ending: tuple[str, LaVIT], written: list[tuple[Ragged, Ragged]], kind: str) -> None:
    """Its lengths count a begin-of-sequence token: without, a quarter of the captions is another."""
    name, model = ending
    wanted = rows("text", kind + name)
    assert len({len(row) for row in wanted}) > 4
    write(model, kind, len(wanted))
    assert [row for _, ids in written for row in lists(ids)] == wanted


@pytest.mark.parametrize("kind", ["captions", "answers"])
def test_prompts_are_the_releases_token_by_token(written: list[tuple[Ragged, Ragged]], kind: str) -> None:
    """[IMG], the image, [/IMG], and for an answer the question's ids; no begin of sequence; padded on the left or not,
    the first scores are the same."""
    model = new_lavit()
    write(model, kind, 3)
    ((prompts, _),) = written
    found = golden("text")
    assert prompts.lengths().tolist() == found[f"{kind}_prompt_lengths"].tolist()
    expected = found[f"{kind}_prompts"]
    torch.testing.assert_close(prompts.values, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    for row, wanted in zip(prompts.unbind(), found[f"{kind}_logits"], strict=True):
        with torch.no_grad():
            logits = model.language_model(inputs_embeds=row[None]).logits[0, -1, ::97]
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


@torch.no_grad()
def test_no_id_of_an_image_is_written(written: list[tuple[Ragged, Ragged]]) -> None:
    """Though images are likelier than any text after every prompt."""
    model = new_lavit()
    model.language_model.lm_head.weight[TEXT_SIZE:] *= 3
    model.caption(pictures(0, 1), PROCESSOR)
    ((prompts, ids),) = written
    for row in prompts.unbind():
        assert int(model.language_model(inputs_embeds=row[None]).logits[0, -1].argmax()) >= TEXT_SIZE
    assert all(len(row) >= 8 and max(row) < TEXT_SIZE for row in lists(ids))
