"""Laws of exact matches and token F1: SQuAD's words, the best reference counts, chance is what a constant reaches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lavit.evaluation.caption_words import CANDIDATES, TRIED_ON, Constant, normalize_caption, score_words, token_f1


@pytest.mark.parametrize(
    "text, words",
    [
        (" A red  Circle. ", "red circle"),
        ("The cat, an apple; a dog's", "cat apple dogs"),
        ("waving hand: light skin tone", "waving hand light skin tone"),
        ("panthéon", "pantheon"),
        ("well-known", "wellknown"),  # as SQuAD's script
        ("«Käse» – 3€", "kase 3€"),
        ("theatre another", "theatre another"),
        ("a", ""),
    ],
)
def test_captions_are_compared_in_the_words_of_squad(text, words):
    words = words.replace("pantheon", "panthéon").replace("kase", "käse")
    assert normalize_caption(text) == words
    assert normalize_caption("pante\u0301n") == "pantén"  # composed


@pytest.mark.parametrize(
    "text, reference, f1",
    [
        ("red circle", "red circle", 1),
        ("red circle", "blue circle", 2 * 1 / 4),
        ("circle", "red circle top", 2 * 1 / 4),
        ("red red red", "red circle", 2 * 1 / 5),  # a word counts as often as in both
        ("red", "blue", 0),
        ("", "red", 0),
        ("", "", 1),
    ],
)
def test_f1_is_twice_the_shared_words_over_all_words(text, reference, f1):
    assert token_f1(text, reference) == pytest.approx(f1) == token_f1(reference, text)


def test_the_best_reference_of_each_image_counts():
    references = [["a square", "red circle!"], ["the big dog"], ["a car"]]
    found = score_words(["a red circle", "dog", "three cats"], references)
    assert found.exact == 1 / 3 and found.each == pytest.approx([1, 2 / 3, 0]) and found.f1 == pytest.approx(5 / 9)


def test_chance_by_exact_matches_is_the_reference_of_most_images():
    references = [["a dog", "dog", "A dog."], ["a cat"], ["the cat", "bird"]]  # three of one image are one
    found = score_words(["x"] * 3, references)
    assert found.guessed_exact == Constant(2 / 3, "cat") and found.exact == 0
    assert score_words(["a cat"] * 3, references).exact == found.guessed_exact.value


def test_chance_by_f1_is_reached_by_saying_it_and_by_no_reference_surpassed():
    rng = np.random.default_rng(0)
    words = "red blue circle square top left right bottom big small".split()
    references = [[" ".join(rng.choice(words, rng.integers(2, 6))) for _ in range(2)] for _ in range(12)]
    every = list(itertools.chain(*references))
    assert len(every) < CANDIDATES
    found = score_words(["x"] * 12, references)
    said = [score_words([text] * 12, references).f1 for text in every]
    assert found.guessed_f1.value == pytest.approx(max(said))
    assert score_words([found.guessed_f1.caption] * 12, references).f1 == pytest.approx(found.guessed_f1.value)


def test_of_many_captions_chance_is_still_no_less_than_that_of_the_commonest():
    references = [["the same caption"] if n % 3 == 0 else [f"name {n} of {n % 7}"] for n in range(3 * TRIED_ON)]
    found = score_words(["x"] * len(references), references)
    assert found.guessed_exact == Constant(1 / 3, "same caption")
    same = score_words(["same caption"] * len(references), references).f1
    assert found.guessed_f1.value >= same >= 1 / 3
