"""Where a generated text ends for its reader: the release's postprocessing."""

from __future__ import annotations

import re
from collections.abc import Callable

SPACY_MODEL = "en_core_web_sm"
ANSWER_ENDS = re.compile(r"\n|question:|Long answer:|,|\.")


def cut_caption(text: str) -> str:
    """The release's postprocessing of a generated caption: cut at the first "." and stripped."""
    return text.split(".", 1)[0].strip()


def cut_answer(text: str) -> str:
    """The release's postprocessing of a generated answer, without the lemmas: cut, stripped, in lower case.

    It is cut at the first newline, "question:", "Long answer:", "," or ".", in this spelling.
    """
    return ANSWER_ENDS.split(text.strip(), maxsplit=1)[0].strip().lower()


def spacy_lemmatizer(model: str = SPACY_MODEL) -> Callable[[str], str]:
    """The release's last step for answers: nouns and verbs become their lemmas, "two dogs running" "two dog run".

    model: the name or the folder of a pipeline of spaCy, loaded here, once. Words are those of its tokenizer, with one
    space between any two ("don't" is two words).
    Raises ImportError naming what is to be installed where spaCy or its pipeline is missing.
    """
    wanted = f"pip install lavit[vqa] && python -m spacy download {SPACY_MODEL}"
    try:
        import spacy
    except ImportError as error:
        raise ImportError(f"lemmas of answers need spaCy and its English pipeline: {wanted}") from error
    try:
        pipeline = spacy.load(model)
    except OSError as error:
        raise ImportError(f"spaCy has no pipeline {model!r}: {wanted}") from error

    def lemmatize(answer: str) -> str:
        words = pipeline(answer.lower())
        return " ".join(word.lemma_ if word.pos_ in ("NOUN", "VERB") else word.text for word in words)

    return lemmatize
