"""Captions, answers and image tokens: what is read and asked, what a batch may not change, and what is bad is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from speaking import (
    CAPTIONS,
    CONTEXT,
    FEW,
    PROMPTS,
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
from tiny_lavit import NUM_CODES, llama, tokenizer
from torch import Tensor

from lavit.data.sequences import PROMPT
from lavit.kernels import Loss, Ragged, Segment
from lavit.language import LaVIT, LaVITProcessor, inference
from lavit.language.configuration import PROMPT_IMAGES
from lavit.language.guidance import SamplingSettings
from lavit.language.sampling import sample_image_tokens
from lavit.language.text_generation import generate_text


@pytest.fixture(scope="module")
def processor() -> LaVITProcessor:
    return new_processor()


@pytest.fixture(scope="module")
def model(processor: LaVITProcessor) -> LaVIT:
    return new_model(processor)


# Text.


def test_a_caption_is_the_text_after_the_image_whatever_the_image_comes_as(model, processor, tmp_path: Path) -> None:
    pictures = [picture(i) for i in range(5)]
    wanted = generate_text(model.language_model, model.vocabulary, embedded(model, processor, pictures), eos_id=2)
    texts = [processor.tokenizer.decode(row, skip_special_tokens=True).split(".")[0].strip() for row in wanted.unbind()]
    assert len(set(texts)) == 5

    path = tmp_path / "picture.png"
    path.write_bytes(file_of(pictures[0]))
    array = np.asarray(pictures[3])
    forms = [
        str(path),
        file_of(pictures[1]),
        pictures[2],
        array,
        torch.from_numpy(np.asarray(pictures[4]) / 255).permute(2, 0, 1),
    ]
    found = model.caption(forms, processor)
    assert found == texts and found.indices == [0, 1, 2, 3, 4] and found.skipped == []
    assert model.caption(path, processor) == model.caption(pictures[0], processor) == texts[:1]
    assert model.caption(np.stack([array, array]), processor) == [texts[3]] * 2
    assert model.caption(processor.image_processor(pictures), processor) == texts
    assert model.caption(pictures, processor, cut=str.upper, batch_size=2)[0].startswith(texts[0].upper())


def test_an_answer_is_the_text_after_the_image_and_its_question(model, processor) -> None:
    pictures, questions = [picture(i) for i in range(3)], [question for question, _ in QUESTIONS]
    prompts = [[image, f"Question: {text} Answer:"] for image, text in zip(pictures, questions, strict=True)]
    settings = {"num_beams": 5, "min_new": 2, "max_new": 10, "length_penalty": 0.0, "eos_id": 2}
    wanted = generate_text(model.language_model, model.vocabulary, embedded(model, processor, prompts), **settings)
    texts = [
        re.split(r"[\n,.]", processor.tokenizer.decode(row, skip_special_tokens=True).strip())[0].strip().lower()
        for row in wanted.unbind()
    ]
    assert model.answer(pictures, questions, processor) == texts
    assert model.answer(pictures, questions, processor, lemmatize=lambda text: f"<{text}>") == [f"<{t}>" for t in texts]
    assert model.answer(pictures, prompts_of(prompts), processor, template="{}") == texts


def prompts_of(prompts: list[Any]) -> list[str]:
    return [text for _, text in prompts]


@pytest.mark.parametrize("image_seeds", [None, [3, 1, 4, 1, 5]])
def test_texts_do_not_depend_on_the_batch(model, processor, image_seeds) -> None:
    pictures, asked = [picture(i) for i in range(5)], [QUESTIONS[i % 3][0] for i in range(5)]

    def texts(chosen: list[int], batch_size: int) -> list[str]:
        seeds = None if image_seeds is None else [image_seeds[i] for i in chosen]
        reading = {"image_seeds": seeds, "batch_size": batch_size, **SHORT}
        images = [pictures[i] for i in chosen]
        return [
            *model.caption(images, processor, **reading),
            *model.answer(images, [asked[i] for i in chosen], processor, **reading),
        ]

    together = texts([0, 1, 2, 3, 4], 5)
    assert texts([0, 1, 2, 3, 4], 2) == together
    assert texts([4, 2], 1) == [together[i] for i in (4, 2, 9, 7)]


def test_seeds_choose_the_patches(model, processor) -> None:
    pictures = [picture(i) for i in range(3)]
    wanted = embedded(model, processor, pictures, deterministic=False, seeds=[7, 8, 9])
    seen = []
    for _, _, rows in inference.PromptReader(
        model, processor, [[p] for p in pictures], what="image", new_tokens=1, batch_size=2, on_error="raise",
        image_seeds=[7, 8, 9],
    ).batches(range(3)):  # fmt: skip
        seen += rows.unbind()
    torch.testing.assert_close(torch.cat(seen), wanted.values, rtol=1e-9, atol=1e-9)
    assert not torch.equal(wanted.cu_seqlens, embedded(model, processor, pictures).cu_seqlens)


def test_settings_are_the_releases_unless_given(model, processor, monkeypatch) -> None:
    seen: list[dict[str, Any]] = []

    def written(language_model, vocabulary, prompts, **settings):
        seen.append(settings)
        return Ragged.from_list([torch.tensor([5])] * prompts.batch_size)

    monkeypatch.setattr(inference, "generate_text", written)
    model.caption([picture()], processor)
    model.answer([picture()], ["what?"], processor)
    model.answer([picture()], ["what?"], processor, early_stopping=True)
    released = new_model(processor, answer_early_stopping=True)
    released.answer([picture()], ["what?"], processor)
    released.answer([picture()], ["what?"], processor, early_stopping=False)
    model.caption([picture()], processor, num_beams=7, length_penalty=2.0, **SHORT)
    assert inference.QUESTION == PROMPT  # what training asks
    assert seen == [
        {"eos_id": 2, "num_beams": 2, "min_new": 8, "max_new": 36, "length_penalty": 1.0, "early_stopping": False},
        {"eos_id": 2, "num_beams": 5, "min_new": 2, "max_new": 10, "length_penalty": 0.0, "early_stopping": False},
        {"eos_id": 2, "num_beams": 5, "min_new": 2, "max_new": 10, "length_penalty": 0.0, "early_stopping": True},
        {"eos_id": 2, "num_beams": 5, "min_new": 2, "max_new": 10, "length_penalty": 0.0, "early_stopping": True},
        {"eos_id": 2, "num_beams": 5, "min_new": 2, "max_new": 10, "length_penalty": 0.0, "early_stopping": False},
        {"eos_id": 2, "num_beams": 7, "min_new": 1, "max_new": 6, "length_penalty": 2.0, "early_stopping": False},
    ]


def test_a_model_that_has_learned_its_images_says_exactly_what_they_show() -> None:
    processor = new_processor()
    torch.manual_seed(0)
    model = LaVIT.from_parts(llama(processor.text_size), tokenizer()).train()
    pictures = [picture(i) for i in range(3)]
    pixels = processor.image_processor(pictures)

    def ids(text: str) -> list[int]:
        return processor.tokenizer(text)["input_ids"]

    eos = processor.tokenizer.eos_token_id
    texts = [[*ids(text), eos] for text in CAPTIONS]
    for question, answer in QUESTIONS:
        texts += [ids(f"Question: {question} Answer:"), [*ids(f" {answer}"), eos]]
    features, text, none = Segment.FEATURES, Segment.TEXT, Loss.NONE
    segments = Ragged.from_list([torch.tensor([features, text])] * 3 + [torch.tensor([features, text, text])] * 3)
    flags = torch.tensor([none, Loss.CONTENT] * 3 + [none, none, Loss.CONTENT] * 3)
    batch = {"text": Ragged.from_list([torch.tensor(row) for row in texts]), "segments": segments, "loss": flags}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2, weight_decay=0)
    for _ in range(60):
        loss = model(**batch, images=pixels.repeat(2, 1, 1, 1), deterministic=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.02
    model.eval()
    assert model.caption(pictures, processor, min_new=1) == CAPTIONS
    assert model.answer(pictures, [q for q, _ in QUESTIONS], processor, min_new=1) == ["red", "two", "no"]


# Image tokens.

def test_image_tokens_are_drawn_after_the_prompt_with_guidance_4_and_5_where_it_holds_images(model, processor) -> None:
    seeds = torch.arange(2 * len(PROMPTS)).view(-1, 2)
    found = model.generate_tokens(PROMPTS, processor, num_samples=2, seeds=seeds.flatten(), **FEW)
    assert found.indices == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and found.skipped == [] and found.scores is None
    wanted: dict[int, list[Tensor]] = {}
    for guidance, chosen in ((4.0, [0, 2]), (5.0, [1, 3, 4])):
        rows = embedded(model, processor, [PROMPTS[i] for i in chosen], begin_image=True)
        setting = SamplingSettings(guidance=guidance, num_samples=2, **FEW)
        own = {"seeds": seeds[chosen].flatten(), "max_codes": 16}
        drawn = sample_image_tokens(model.language_model, model.vocabulary, rows, setting, **own).unbind()
        wanted |= {index: drawn[2 * place : 2 * place + 2] for place, index in enumerate(chosen)}
    assert lists(found.codes) == [row.tolist() for index in range(5) for row in wanted[index]]
    fixed = SamplingSettings(guidance=1.0, **FEW)
    assert codes_of(model, processor, settings=fixed, seeds=range(5)) == codes_of(
        model, processor, guidance=1.0, seeds=range(5)
    )


def test_a_sample_depends_on_its_prompt_and_seed_alone(model, processor) -> None:
    together = codes_of(model, processor, seeds=range(5), image_seeds=range(10, 14))
    assert codes_of(model, processor, seeds=range(5), image_seeds=range(10, 14), batch_size=1) == together
    some = codes_of(model, processor, [PROMPTS[4], PROMPTS[0]], seeds=[4, 0], image_seeds=[12, 13])
    assert some == [together[4], together[0]]
    assert codes_of(model, processor, seeds=range(5, 10), image_seeds=range(10, 14)) != together
    drawn = []
    for batch_size in (1, 5):
        torch.manual_seed(3)
        drawn.append(codes_of(model, processor, batch_size=batch_size))
    assert drawn[0] == drawn[1]


def test_prompts_that_are_alike_are_read_once_and_drawn_as_alone(model, processor, monkeypatch) -> None:
    image = picture(4)
    prompts = ["a red circle", [image, "but blue"], "a red circle", [picture(4), "but blue"], "a red circle"]
    prompts += [[image, "but blue"]]
    alone = [codes_of(model, processor, [prompt], seeds=[seed])[0] for seed, prompt in enumerate(prompts)]
    texts = model.caption([prompt[0] for prompt in prompts if not isinstance(prompt, str)], processor, **SHORT)
    read = []
    forward = model.language_model.model.forward
    monkeypatch.setattr(
        model.language_model.model, "forward", lambda **kw: read.append(len(kw["inputs_embeds"])) or forward(**kw)
    )
    assert codes_of(model, processor, prompts, seeds=range(6)) == alone
    assert read == [1 + 1, 2 + 1], "a text and [IMG], two image objects and [IMG]"
    assert texts[0] == texts[1] == texts[2] and len(texts) == 3


def test_images_of_other_seeds_are_not_alike(model, processor) -> None:
    prompts = [[picture(5)]] * 4
    found = codes_of(model, processor, prompts, seeds=[0] * 4, image_seeds=[7, 7, 8, 9])
    assert found == [codes_of(model, processor, prompts[:1], seeds=[0], image_seeds=[i])[0] for i in (7, 7, 8, 9)]
    assert found[0] == found[1] and len({tuple(row) for row in found}) > 1


def test_prompts_like_one_that_is_refused_are_refused_by_their_own_numbers(model, processor) -> None:
    prompts = ["a" * 200, "a red circle", "a" * 200, "", "a red circle", ""]
    found = model.generate_tokens(prompts, processor, on_error="skip", seeds=[0] * 6, **FEW)
    assert found.indices == [1, 4] and [item for item, _ in found.skipped] == [0, 2, 3, 5]
    for item, reason in found.skipped:
        assert reason.startswith(f"prompt {item}: ") and reason.count(f"prompt {item}") == 1


def test_settings_of_sampling_are_the_releases_and_codes_never_outnumber_the_decoders_positions(
    model, processor, monkeypatch
) -> None:
    assert {len(row) for row in codes_of(model, processor, ["a"], min_tokens=20, max_tokens=200)} == {16}
    seen = []

    def drawn(language_model, vocabulary, prompts, settings, *, seeds, max_codes, of):
        seen.append((settings, max_codes))
        return Ragged.from_list([torch.tensor([5])] * prompts.batch_size)

    monkeypatch.setattr(inference, "sample_image_tokens", drawn)
    model.generate_tokens(["a", [picture()]], processor)
    model.generate_tokens(["a"], processor, top_k=200, guidance=2.0)
    release = {"top_k": 50, "top_p": 1.0, "temperature": 1.0, "min_tokens": 20, "max_tokens": 200, "num_samples": 1}
    assert seen == [
        (SamplingSettings(guidance=4.0, **release), 16),
        (SamplingSettings(guidance=5.0, **release), 16),
        (SamplingSettings(**{**release, "top_k": 200, "guidance": 2.0}), 16),
    ]


def test_a_model_may_have_settings_of_its_own_for_all_prompts(processor, monkeypatch, tmp_path: Path) -> None:
    new_model(processor, image_sampling={"guidance": 1.7, "min_tokens": 1}).save_pretrained(tmp_path)
    own = LaVIT.from_pretrained(tmp_path)
    seen = []

    def drawn(language_model, vocabulary, prompts, settings, *, seeds, max_codes, of):
        seen.append(settings)
        return Ragged.from_list([torch.tensor([5])] * prompts.batch_size)

    monkeypatch.setattr(inference, "sample_image_tokens", drawn)
    own.generate_tokens(["a", [picture()]], processor, temperature=0.5)
    own.generate_tokens(["a"], processor, SamplingSettings())
    assert seen == [*[SamplingSettings(guidance=1.7, min_tokens=1, temperature=0.5)] * 2, SamplingSettings()]


@pytest.mark.parametrize("shown", ["codes", "bare_codes"])
def test_images_of_a_prompt_may_be_shown_as_codes(model, processor, shown: str) -> None:
    prompt = [picture(0), "but blue"]
    tokens = model.visual_tokenizer.encode(processor.image_processor(prompt[0]), deterministic=True)
    begin, end = model.vocabulary.begin_id, model.vocabulary.end_id
    text = processor.tokenizer(prompt[1])["input_ids"]
    codes = (tokens.ids + model.vocabulary.first_code_id).tolist()
    ids = [*([begin, *codes, end] if shown == "codes" else codes), *text, begin]
    wanted = sample_image_tokens(
        model.language_model,
        model.vocabulary,
        Ragged.from_list([torch.tensor(ids)]),
        SamplingSettings(guidance=5.0, **FEW),
        seeds=[3],
        max_codes=16,
    )
    assert codes_of(model, processor, [prompt], prompt_images=shown, seeds=[3]) == lists(wanted)
    seeded = {"prompt_images": shown, "seeds": [3], "image_seeds": [8]}
    assert codes_of(model, processor, [prompt], **seeded) == codes_of(model, processor, [prompt], **seeded)


def test_a_model_says_how_it_is_shown_the_images_of_prompts(processor, tmp_path: Path) -> None:
    new_model(processor, prompt_images="bare_codes").save_pretrained(tmp_path)
    own = LaVIT.from_pretrained(tmp_path).double()
    prompts = {"prompts": [[picture(0), "but blue"]], "seeds": [3]}
    found = {shown: codes_of(own, processor, prompt_images=shown, **prompts) for shown in PROMPT_IMAGES}
    assert codes_of(own, processor, **prompts) == found["bare_codes"] != found["features"]
    assert codes_of(new_model(processor), processor, **prompts) == found["features"]
    with pytest.raises(ValueError, match="prompt_images: expected one of features, codes, bare_codes, got 'pixels'"):
        own.generate_tokens(["a"], processor, prompt_images="pixels")
    with pytest.raises(ValueError, match="prompt_images: expected one of"):
        new_model(processor, prompt_images="pixels")


def test_bare_codes_that_are_none_are_refused(processor) -> None:
    """A merger that overflows: the features are finite, the codes -1, which would read as [/IMG]."""
    model = new_model(processor)
    with torch.no_grad():
        model.visual_tokenizer.causal_encoder.norm.weight.fill_(torch.nan)
    prompts = [[picture(0), "but blue"], "a red circle"]
    with pytest.raises(ValueError, match="prompt 0: an image has no codes: .* NaN or Inf"):
        codes_of(model, processor, prompts, prompt_images="bare_codes")
    found = model.generate_tokens(prompts, processor, prompt_images="bare_codes", on_error="skip", **FEW)
    assert found.indices == [1] and [item for item, _ in found.skipped] == [0]


def test_bare_codes_leave_the_room_of_their_markers(model, processor) -> None:
    """A prompt that fits to the last place without [IMG] and [/IMG] around its image does not with them."""
    image = picture(0)
    count = len(model.visual_tokenizer.encode(processor.image_processor(image), deterministic=True).ids)
    letters = "a" * (CONTEXT - FEW["max_tokens"] - count)  # beside [IMG], and the last code is not read
    assert len(processor.tokenizer(letters)["input_ids"]) == len(letters)
    codes_of(model, processor, [[image, letters]], prompt_images="bare_codes")
    for shown in ("codes", "features"):
        with pytest.raises(ValueError, match=f"need {CONTEXT + 2} positions, but the model's context has {CONTEXT}"):
            codes_of(model, processor, [[image, letters]], prompt_images=shown)


def test_tokens_decode_to_features(model, processor) -> None:
    found = model.generate_features(PROMPTS, processor, num_samples=2, seeds=range(10), batch_size=3, **FEW)
    assert lists(found.codes) == codes_of(model, processor, num_samples=2, seeds=range(10))
    assert all(0 <= code < NUM_CODES for row in lists(found.codes) for code in row)
    assert found.features is not None and found.features.shape == (10, 16, 32)
    torch.testing.assert_close(
        found.features, model.visual_tokenizer.decode(found.codes).detach(), rtol=1e-9, atol=1e-9
    )


def test_a_scorer_keeps_the_best_sample_of_each_prompt(model, processor) -> None:
    samples = model.generate_features(PROMPTS, processor, num_samples=3, seeds=range(15), **FEW)
    asked: list[Any] = []

    def scorer(prompts: list[Any], features: Tensor) -> list[float]:
        asked.extend(prompts)
        return features[:, 3, 5].tolist()

    found = model.generate_tokens(
        PROMPTS, processor, num_samples=3, seeds=range(15), scorer=scorer, batch_size=2, **FEW
    )
    wanted = samples.features[:, 3, 5].view(5, 3)
    torch.testing.assert_close(found.scores, wanted, rtol=1e-9, atol=1e-9)
    best = wanted.argmax(dim=1) + 3 * torch.arange(5)
    assert lists(found.codes) == [lists(samples.codes)[i] for i in best] and found.indices == [0, 1, 2, 3, 4]
    assert asked.count("a red circle") == 3 and len(asked) == 15
    with pytest.raises(ValueError, match="scorer: gave NaN for a sample of 'a red circle'"):
        model.generate_tokens(PROMPTS, processor, scorer=lambda prompts, _: [float("nan")] * len(prompts), **FEW)
    with pytest.raises(ValueError, match=r"scorer: expected 2 scores, one a sample, got shape \(1,\)"):
        model.generate_tokens(["a"], processor, scorer=lambda prompts, _: [0.0], num_samples=2, **FEW)


# What is bad.
