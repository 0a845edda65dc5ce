"""Samples of the shapes world say what is in the scene, in the order in which a model is asked at inference."""

from __future__ import annotations

import pytest

from lavit.data.sequences import PROMPT, Sequencing, encoder_of
from lavit.kernels import Loss, Segment
from lavit.language.text_tokenizer import train_text_tokenizer
from lavit.shapes.questions import questions, read_caption, sentences
from lavit.shapes.sequences import ShapesSource, shapes_sources
from lavit.shapes.world import ShapesWorld

TEXT, CODES, FEATURES = Segment
WORLD = ShapesWorld(3)
SCENES = WORLD.scenes(12)


@pytest.fixture(scope="module")
def text():
    return train_text_tokenizer(sentences()[:500], 300)


@pytest.fixture(scope="module")
def sources(text):
    return shapes_sources(WORLD, SCENES, Sequencing(encoder_of(text), text.eos_token_id))


def test_every_scene_is_captioned_asked_for_and_told(sources, text):
    for i, cells in enumerate(SCENES.cells.tolist()):
        shown, asked_for, told = sources["caption"][i], sources["image"][i], sources["text"][i]
        assert shown.segments == (FEATURES, TEXT) and asked_for.segments == (TEXT, CODES) and told.segments == (TEXT,)
        assert shown.images == asked_for.images == (i,)
        assert shown.texts[0][-1] == told.texts[0][-1] == text.eos_token_id
        assert read_caption(text.decode(shown.texts[0][:-1])) == cells
        assert read_caption(text.decode(asked_for.texts[0])) == cells
        assert asked_for.loss == (Loss.CONTENT, Loss.ALL) and shown.loss == (Loss.NONE, Loss.CONTENT)


def test_unprompted_images_are_codes_alone(sources):
    alone = sources["unprompted"][5]
    assert (alone.segments, alone.texts, alone.images, alone.loss) == ((CODES,), (), (5,), (Loss.ALL,))


def test_questions_end_where_inference_begins(sources, text):
    source = sources["question"]
    assert len(source) == len(SCENES)
    for i, asked in enumerate(questions(WORLD, SCENES.cells)):
        sample = source[i]
        assert sample.segments == (FEATURES, *(TEXT, TEXT) * 4) and sample.images == (i,)
        assert sample.loss == (Loss.NONE, *(Loss.NONE, Loss.CONTENT) * 4)
        for prompt, said in zip(sample.texts[::2], sample.texts[1::2], strict=True):
            one = next(one for one in asked if prompt == encoder_of(text)(PROMPT.format(one.text)))
            assert text.decode(said[:-1]) == f" {one.answer}" and said[-1] == text.eos_token_id


def test_every_kind_of_question_comes_first_as_often_as_any_other():
    scenes = WORLD.scenes(24)
    asked = questions(WORLD, scenes.cells)
    source = ShapesSource("question", scenes, asked, Sequencing(lambda text: [text], 2))  # type: ignore[list-item]
    first = [[PROMPT.format(one.text) for one in asked[i]].index(source[i].texts[0][0]) for i in range(24)]
    assert [first.count(k) for k in range(4)] == [6, 6, 6, 6]


def test_codes_of_shown_images_are_predicted_if_asked(text):
    sources = shapes_sources(WORLD, SCENES, Sequencing(encoder_of(text), 2, predict_codes=True))
    assert sources["caption"][0].loss == (Loss.ALL, Loss.CONTENT)
    assert sources["question"][0].loss == (Loss.ALL, *(Loss.NONE, Loss.CONTENT) * 4)


def test_prompts_are_predicted_unless_told_otherwise(text):
    silent = shapes_sources(WORLD, SCENES, Sequencing(encoder_of(text), 2, predict_prompts=False))
    assert silent["image"][0].loss == (Loss.NONE, Loss.ALL) and silent["text"][0].loss is None


def test_fingerprints_tell_sources_apart(sources, text):
    other = shapes_sources(WORLD, WORLD.scenes(12, start=5), Sequencing(encoder_of(text), text.eos_token_id))
    prints = {source.fingerprint for each in (sources, other) for source in each.values()}
    assert len(prints) == 10


def test_an_unknown_kind_is_refused(text):
    with pytest.raises(ValueError, match="caption, question, image, unprompted, text, got 'story'"):
        ShapesSource("story", SCENES, (), Sequencing(encoder_of(text), 2))
