"""Captions judged by their words alone, which needs no other package: exact matches and token F1, beside chance.

The words are those of SQuAD's evaluation (Rajpurkar et al., 2016): lower case, without articles and punctuation.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from lavit.data.record import Record

_ARTICLES = re.compile(r"\b(a|an|the)\b")
CANDIDATES = 32
"""Captions that are tried as the one that is said of every image."""
TRIED_ON = 500
"""Images, evenly over all, on which they are tried; the best is judged on all."""


@dataclass(frozen=True)
class Constant(Record):
    """What the best caption scores that is said of every image, and which it is."""

    value: float
    caption: str


@dataclass(frozen=True)
class WordScores(Record):
    """exact: share of the captions that have the words of one of their references, in their order. f1: mean of the
    token F1 with that reference with which it is highest. guessed_exact, guessed_f1: chance. each: the F1 of each
    caption."""

    exact: float
    f1: float
    guessed_exact: Constant
    guessed_f1: Constant
    each: list[float] = field(default_factory=list)


@lru_cache(maxsize=2**16)
def normalize_caption(text: str) -> str:
    """The words as they are compared, with a space between any two: composed (NFC), in lower case, without punctuation
    of any script and ASCII's symbols, and without "a", "an", "the"."""
    text = unicodedata.normalize("NFC", text).lower()
    kept = (c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return " ".join(_ARTICLES.sub(" ", "".join(kept)).split())


def token_f1(text: str, reference: str) -> float:
    """2 m / (n + k) of two normalised texts of n and k words, of which m are in both, each as often as in both; of
    texts without words 1 where both have none."""
    ours, theirs = text.split(), reference.split()
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


def score_words(captions: Sequence[str], references: Sequence[Sequence[str]]) -> WordScores:
    """captions: one of each image. references: what people wrote about each, at least one.

    Chance is the best caption among the references that is said of every image: by exact matches the one that most
    images have, by F1 the best of `CANDIDATES`, which are this one and those that share most words with the others.
    """
    given = [normalize_caption(text) for text in captions]
    known = [tuple(dict.fromkeys(map(normalize_caption, texts))) for texts in references]
    exact = [text in texts for text, texts in zip(given, known, strict=True)]
    each = [_best(text, texts) for text, texts in zip(given, known, strict=True)]
    commonest, images = Counter(text for texts in known for text in texts).most_common(1)[0]
    tried = known[:: -(-len(known) // TRIED_ON)]
    constant = max(_candidates(commonest, known), key=lambda text: sum(_best(text, texts) for texts in tried))
    guessed = sum(_best(constant, texts) for texts in known) / len(known)
    return WordScores(
        sum(exact) / len(exact),
        sum(each) / len(each),
        Constant(images / len(known), commonest),
        Constant(guessed, constant),
        each,
    )


def _best(text: str, references: Iterable[str]) -> float:
    return max(token_f1(text, reference) for reference in references)


def _candidates(commonest: str, known: Sequence[tuple[str, ...]]) -> list[str]:
    """By the F1 that is to be expected of a text: with m shared words in the mean, 2 m / (n + mean length)."""
    every = list(dict.fromkeys(text for texts in known for text in texts))
    with_word = Counter(word for texts in known for word in {word for text in texts for word in text.split()})
    length = sum(len(text.split()) for text in every) / len(every)

    def expected(text: str) -> float:
        words = text.split()
        return 2 * sum(with_word[word] for word in set(words)) / (len(words) + length) if words else 0.0

    return [commonest, *sorted(every, key=expected, reverse=True)[: CANDIDATES - 1]]
