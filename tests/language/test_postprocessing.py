"""Lemmas of answers, and what is said where the library for them is missing."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from lavit.language import spacy_lemmatizer

WORDS = {"dogs": ("NOUN", "dog"), "running": ("VERB", "run"), "better": ("ADJ", "good"), "does": ("AUX", "do")}


def pipeline(text: str) -> list[SimpleNamespace]:
    """In spaCy's form; what it does not know is a noun that is its own lemma."""
    known = ((word, *WORDS.get(word, ("NOUN", word))) for word in text.split())
    return [SimpleNamespace(text=word, pos_=kind, lemma_=lemma) for word, kind, lemma in known]


def test_nouns_and_verbs_become_lemmas_and_other_words_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    stand_in = SimpleNamespace(load=lambda name: loaded.append(name) or pipeline)
    monkeypatch.setitem(sys.modules, "spacy", stand_in)
    lemmatize = spacy_lemmatizer()
    assert lemmatize("Two  dogs running better") == "two dog run better"
    assert lemmatize("does it") == "does it" and lemmatize("") == ""
    spacy_lemmatizer("/a/folder")
    assert loaded == ["en_core_web_sm", "/a/folder"]


def test_a_missing_library_or_pipeline_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ImportError, match=r"need spaCy .*pip install lavit\[vqa\] && python -m spacy download"):
        spacy_lemmatizer()

    def load(name: str) -> None:
        raise OSError(f"[E050] Can't find model {name!r}")

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    with pytest.raises(ImportError, match=r"no pipeline 'en_core_web_md': pip install lavit\[vqa\]"):
        spacy_lemmatizer("en_core_web_md")
