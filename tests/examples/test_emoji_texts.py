"""Laws of questions and edits: answers are true, "yes" is as frequent as "no", an edit changes one thing."""

from collections import Counter, defaultdict

import pytest

from examples.emoji.judge import Parts, parse
from examples.emoji.people import TONES
from examples.emoji.splits import SPLITS, split
from examples.emoji.texts import EDITS, QUESTIONS, edits, questions


@pytest.fixture(scope="module")
def parts(found):
    return split(found.drawings, 2, 0)


def test_captions_are_read_back(parts):
    for name in SPLITS:
        for picture in parts[name]:
            emoji = picture.emoji
            tone = emoji.tone if emoji.tone in TONES else ""
            assert parse(picture.caption) == Parts(emoji.name, tone, picture.background)


@pytest.mark.parametrize("name", SPLITS)
def test_answers_are_true(parts, name):
    asked = questions(parts[name], 0)
    assert {question.kind for question in asked} <= set(QUESTIONS)
    for question in asked:
        emoji = question.picture.emoji
        said = parse(question.picture.caption)
        if question.kind == "name":
            assert question.answer == said.name
        elif question.kind == "background":
            assert question.answer == said.background
        elif question.kind == "tone":
            assert question.answer == (said.tone or "none")
        elif question.kind == "gender":
            assert question.answer in ("woman", "man", "person")
        elif question.kind == "profession":
            assert question.answer in said.name
        elif question.kind == "person":
            assert question.answer == ("yes" if emoji.kind == "person" else "no")


@pytest.mark.parametrize("name", SPLITS)
def test_there_is_a_person_as_often_as_there_is_none(parts, name):
    answers = Counter(question.answer for question in questions(parts[name], 0) if question.kind == "person")
    assert answers["yes"] == answers["no"] > 10


def test_each_picture_is_asked_for_its_name_and_its_background_and_nothing_twice(parts):
    kinds = defaultdict(list)
    for question in questions(parts["train"], 0):
        kinds[question.picture.file].append(question.kind)
    assert len(kinds) == len(parts["train"])
    for asked in kinds.values():
        assert {"name", "background"} <= set(asked) and len(set(asked)) == len(asked)


def facts(picture):
    emoji = picture.emoji
    return dict(
        background=picture.background,
        tone=emoji.tone,
        gender=emoji.gender,
        hair=emoji.hair,
        profession=emoji.profession,
        base=emoji.base,
    )


@pytest.mark.parametrize("name", SPLITS)
def test_an_edit_changes_one_thing_within_its_split(parts, name):
    there = set(parts[name])
    changes = edits(parts[name], 0)
    for edit in changes:
        assert {edit.before, edit.after} <= there and edit.before != edit.after
        before, after = facts(edit.before), facts(edit.after)
        changed = {key for key in before if before[key] != after[key]}
        allowed = {"object": {"base"}, "hair": {"hair", "base"}, "profession": {"profession", "base"}}
        assert changed == allowed.get(edit.kind, {edit.kind})
        asked = {"object": edit.after.emoji.name}.get(edit.kind) or after[edit.kind]
        assert f" {asked}" in edit.text
    assert len({(edit.kind, edit.before) for edit in changes}) == len(changes)


def test_each_kind_of_edit_is_there_among_seen_parts(parts):
    for name in ("train", "held-out-combinations"):
        assert {edit.kind for edit in edits(parts[name], 0)} == set(EDITS)


def test_what_is_asked_and_changed_depends_on_the_seed_alone(parts):
    some = parts["held-out-combinations"]
    assert questions(some, 0) == questions(some, 0) and edits(some, 0) == edits(some, 0)
    assert edits(some, 0) != edits(some, 1)
    assert {*edits(some[::-1], 0)} == {*edits(some, 0)}
