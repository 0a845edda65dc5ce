"""Of a batch what cannot be used is named, and left out where asked for; wrong arguments are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from speaking import (
    FEW,
    QUESTIONS,
    SHORT,
    codes_of,
    embedded,
    file_of,
    lists,
    new_model,
    new_processor,
    picture,
)
from tiny_lavit import SIDE

from lavit.data.sequences import PROMPT
from lavit.language import LaVIT, LaVITProcessor
from lavit.language.configuration import PROMPT_IMAGES
from lavit.language.generation_inputs import NonFiniteScores
from lavit.tokenizer import LaVITImageProcessor


@pytest.fixture(scope="module")
def processor() -> LaVITProcessor:
    return new_processor()


@pytest.fixture(scope="module")
def model(processor: LaVITProcessor) -> LaVIT:
    return new_model(processor)


def test_a_bad_item_is_named_and_in_a_batch_job_skipped(model, processor, tmp_path: Path) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(file_of(picture())[:200])
    broken = processor.image_processor(picture())
    broken[0, 1, 2, 3] = torch.nan
    good = [picture(i) for i in range(3)]
    asked = [QUESTIONS[i % 3][0] for i in range(8)]

    images = [good[0], str(cut), tmp_path / "missing.png", good[1], broken, 7, good[2]]
    faults = {
        1: "image 1: .*cut.png: .*truncated",
        2: "image 2: .*missing.png: no such file",
        4: "image 4: an image, .* is NaN or Inf",
        5: "image 5: expected a string or one image, got int",
    }
    for index, message in faults.items():
        with pytest.raises((ValueError, TypeError), match=message):
            model.caption([good[0]] * index + [images[index]], processor, batch_size=2, **SHORT)
    found = model.caption(images, processor, on_error="skip", batch_size=3, **SHORT)
    assert found == model.caption(good, processor, **SHORT) and found.indices == [0, 3, 6]
    assert [item for item, _ in found.skipped] == list(faults)
    assert all(re.match(faults[item], reason) for item, reason in found.skipped)

    answers = model.answer([*images, good[0]], [*asked[:6], " ", "x" * 200], processor, on_error="skip", **SHORT)
    assert answers.indices == [0, 3] and answers == model.answer(good[:2], [asked[0], asked[3]], processor, **SHORT)
    reasons = dict(answers.skipped)
    assert sorted(reasons) == [1, 2, 4, 5, 6, 7] and reasons[6] == "item 6: expected a text, got ' '"
    assert re.match(r"item 7: 1 images and text of \d+ tokens, and up to 6 new ones, need .* has 96", reasons[7])


def test_a_bad_prompt_is_named_and_in_a_batch_job_skipped(model, processor) -> None:
    # 20 images have room for their markers, and are too many once their tokens are counted; 60 are too many at once.
    prompts: list[Any] = [
        "a red circle",
        "",
        [],
        [picture(1)] * 20,
        [picture(0), "but blue"],
        [b"?"],
        [picture(1)] * 60,
    ]
    faults = {
        1: "prompt 1: expected text or an image, got an empty prompt",
        2: "prompt 2: expected text or an image, got an empty prompt",
        3: "prompt 3: 20 images and text of .* 7 new ones, need .* positions, but the model's context has 96",
        5: "prompt 5: .*cannot|prompt 5: .*not an image",
        6: "prompt 6: 60 images and text of 121 tokens",
    }
    for index, message in faults.items():
        with pytest.raises(ValueError, match=message):
            model.generate_tokens(["a"] * index + [prompts[index]], processor, **FEW)
    seeds = torch.arange(14)
    found = model.generate_tokens(prompts, processor, num_samples=2, seeds=seeds, on_error="skip", **FEW)
    assert found.indices == [0, 0, 4, 4]
    assert [item for item, _ in found.skipped] == list(faults)
    assert all(re.match(faults[item], reason) for item, reason in found.skipped)
    rest = [prompts[0], prompts[4]]
    assert lists(found.codes) == codes_of(model, processor, rest, num_samples=2, seeds=[0, 1, 8, 9])

    seeded = {"image_seeds": range(82), "seeds": range(7), "batch_size": 7, "on_error": "skip"}
    for shown in PROMPT_IMAGES:
        own = {"image_seeds": [20], "seeds": [0, 4], "prompt_images": shown}
        assert codes_of(model, processor, prompts, prompt_images=shown, **seeded) == codes_of(
            model, processor, rest, **own
        )


def test_nothing_in_is_nothing_out(model, processor) -> None:
    assert model.caption([], processor) == [] == model.answer([], [], processor)
    for prompts in ([], [""]):
        found = model.generate_features(prompts, processor, on_error="skip")
        assert found.codes.batch_size == 0 and len(found.skipped) == len(prompts)
        assert found.features is not None and found.features.shape == (0, 16, 32)


def test_wrong_arguments_are_named(model, processor) -> None:
    one = [picture()]
    other = LaVITProcessor(LaVITImageProcessor(SIDE + 1), processor.tokenizer)
    larger = LaVITProcessor(LaVITImageProcessor(SIDE), processor.tokenizer, processor.text_size + 1)
    regressing = new_model(processor, image_objective="regress")
    for call, message in [
        (lambda: model.caption(one, other), f"processor: expected images of side {SIDE}, got {SIDE + 1}"),
        (lambda: model.caption(one, larger), "processor: expected text_size .*, the model's, got"),
        (lambda: model.caption(one, processor, batch_size=0), "batch_size: expected a number >= 1, got 0"),
        (lambda: model.caption(one, processor, on_error="stop"), "on_error: expected 'raise' or 'skip', got 'stop'"),
        (lambda: model.caption(one, processor, min_new=9, max_new=3), "min_new: expected 0 to max_new = 3, got 9"),
        (lambda: model.caption(one, processor, image_seeds=[1, 2]), "image_seeds: expected 1 seeds, one an image"),
        (lambda: model.answer(one, "what?", processor), "questions: expected a list of texts, got the text 'what"),
        (lambda: model.answer(one, ["a", "b"], processor), "questions: expected one for each of 1 images, got 2"),
        (lambda: model.generate_tokens("a", processor), "prompts: expected a list of prompts, got the text 'a'"),
        (lambda: model.generate_tokens(["a"], processor, seeds=[1, 2]), "seeds: expected 1, 1 for each of 1 prompts"),
        (lambda: model.generate_tokens(["a"], processor, top_p=0.0), "top_p: expected a number in"),
        (lambda: regressing.generate_tokens(["a"], processor), "image_objective: expected a model that predicts codes"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_scores_that_are_not_finite_name_the_callers_own_item(processor, on_error: str) -> None:
    """Behind skipped ones and batches of two, the third: what it alone says is NaN to the model."""
    model = new_model(processor)
    pictures = [picture(i) for i in range(4)]
    prompts = ["a red circle", "nothing", "red", ["a triangle", pictures[0]], ["a circle", pictures[1]]]
    questions = ["red?", "a circle?", "a triangle?", "nothing?"]
    asked = [PROMPT.format(question) for question in questions]
    texts = ("a triangle", *prompts[:3], "a circle", *asked)
    said = {text: set(processor([text]).text.values.tolist()) for text in texts}
    own = said.pop("a triangle") & said.pop(asked[2])
    with torch.no_grad():
        model.language_model.model.embed_tokens.weight[list(own - set().union(*said.values()))] = torch.nan
    reading = {"batch_size": 2, "on_error": on_error}
    good = model.generate_tokens([prompts[i] for i in (0, 1, 2, 4)], processor, seeds=range(4), **FEW, **reading)
    assert good.indices == [0, 1, 2, 3]
    with pytest.raises(NonFiniteScores, match="^prompt 3: expected finite scores for new token 0, got NaN or Inf$"):
        model.generate_tokens(prompts, processor, seeds=range(5), **FEW, **reading)
    if on_error == "skip":
        prompts[0] = b"no image"
        with pytest.raises(NonFiniteScores, match="^prompt 3: "):
            model.generate_tokens(prompts, processor, seeds=range(5), **FEW, **reading)
    with pytest.raises(NonFiniteScores, match="^item 2: expected finite scores for new token 0, got NaN or Inf$"):
        model.answer(pictures, questions, processor, **SHORT, **reading)
    with torch.no_grad():
        model.language_model.lm_head.weight[:5] = torch.nan
    with pytest.raises(NonFiniteScores, match="^image 0: expected finite scores for new token 0, got NaN or Inf$"):
        model.caption(pictures, processor, **SHORT, **reading)


def test_seeds_are_not_rounded(model, processor) -> None:
    with pytest.raises(TypeError, match=r"^seeds: expected integers, got 1\.5 at place 1"):
        model.generate_tokens(["a", "b"], processor, seeds=[1, 1.5], **FEW)
    with pytest.raises(TypeError, match="^seeds: expected integers, got True at place 0"):
        model.generate_tokens(["a"], processor, seeds=[True], **FEW)
    with pytest.raises(TypeError, match="^seeds: expected int64, got torch.float64"):
        model.generate_tokens(["a"], processor, seeds=torch.tensor([1.0]).double(), **FEW)
    with pytest.raises(TypeError, match=r"^image_seeds: expected integers, got 0\.5 at place 0"):
        model.caption([picture()], processor, image_seeds=[0.5], **SHORT)
    with pytest.raises(TypeError, match=r"^seeds: expected integers, got 0\.5 at place 0"):
        embedded(model, processor, [picture()], seeds=[0.5], deterministic=False)
