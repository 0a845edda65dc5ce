"""Captions judged: of the shapes world by what they say is where, of photographs by the metrics of COCO captions."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lavit.data.record import Record
from lavit.evaluation.caption_words import WordScores, score_words
from lavit.language.postprocessing import cut_caption as cut_caption
from lavit.shapes.questions import read_caption
from lavit.shapes.scores import SceneReport, score_scenes
from lavit.shapes.world import CELLS, EMPTY

INSTALL = "pip install -e '.[evaluation]'"
"""In a checkout, as the installation of all the rest."""


@dataclass(frozen=True)
class SceneCaptionReport(Record):
    """readable: share of captions that say something in the world's words at all. objects: what they say is where, with
    its chance levels; a caption that cannot be read says nothing. ``objects.score.exact`` is the share of captions that
    are word for word the true one."""

    readable: float
    objects: SceneReport


def score_scene_captions(captions: Sequence[str], cells: np.ndarray) -> SceneCaptionReport:
    """Captions of the shapes world's scenes against the true ``cells`` (n, 4).

    Raises ValueError for another number of captions than scenes, or none.
    """
    if len(captions) != len(cells):
        raise ValueError(f"captions: expected one for each of {len(cells)} scenes, got {len(captions)}")
    read = [read_caption(text) for text in captions]
    found = np.array([row or [EMPTY] * CELLS for row in read], dtype=np.int64).reshape(-1, CELLS)
    objects = score_scenes(found, cells)
    return SceneCaptionReport(sum(row is not None for row in read) / len(read), objects)


@dataclass(frozen=True)
class CaptionScores(Record):
    """scores: by metric, as pycocoevalcap gives them. skipped: metric -> why it was not computed. tokenizer: "ptb", the
    one of published numbers, or "plain" (words in lower case) where there is no Java for it; published numbers then do
    not compare. captions: how many were judged. missing: references without a caption, which do not count. words: exact
    matches and F1, which are always there, beside chance. each: the CIDEr of each caption, in their order; none where
    there is no CIDEr."""

    scores: dict[str, float]
    skipped: dict[str, str]
    tokenizer: str
    captions: int
    missing: list[Hashable]
    words: WordScores
    each: list[float] = field(default_factory=list)


METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")


def score_captions(captions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> CaptionScores:
    """Exact matches and token F1, and the metrics of COCO captions by pycocoevalcap; what cannot be computed here is in
    ``skipped``, with the reason.

    captions, references: by image; every caption needs at least one reference. METEOR and SPICE need Java, SPICE also
    its models (``python -m pycocoevalcap.spice.get_stanford_models``); nothing is downloaded.
    Raises ValueError for a caption without references, and where there is no caption.
    """
    for key in captions:
        if isinstance(references.get(key), str) or not references.get(key):
            raise ValueError(f"references: expected a list of at least one for image {key!r}, got none")
    if not captions:
        raise ValueError(f"captions: expected at least one for {len(references)} images, got none")
    missing = [key for key in references if key not in captions]
    words = score_words(list(captions.values()), [references[key] for key in captions])
    if find_spec("pycocoevalcap") is None:
        reason = f"pycocoevalcap is not installed ({INSTALL})"
        return CaptionScores({}, dict.fromkeys(METRICS, reason), "plain", len(captions), missing, words)

    java = None if shutil.which("java") else "there is no java"
    given = {i: [captions[key]] for i, key in enumerate(captions)}
    known = {i: list(references[key]) for i, key in enumerate(captions)}
    tokenizer = "plain"
    skipped: dict[str, str] = {}
    if java is None:
        try:
            given, known, tokenizer = _ptb(given), _ptb(known), "ptb"
        except Exception as error:  # whatever a foreign program leads to
            java = f"java does not run its tokenizer ({_why(error)})"
    if tokenizer == "plain":
        given, known = _plain(given), _plain(known)

    scores: dict[str, float] = {}
    each: list[float] = []

    def cider(known: Any, given: Any) -> Any:
        mean, single = _scorer("cider.cider", "Cider").compute_score(known, given)
        each.extend(map(float, single if len(single) == len(captions) else []))
        return mean

    runs: list[tuple[tuple[str, ...], Callable[[], str | None], Callable[[Any, Any], Any]]] = [
        (METRICS[:4], lambda: None, _bleu),
        (("METEOR",), lambda: java, _meteor),
        (("ROUGE-L",), lambda: None, lambda a, b: _scorer("rouge.rouge", "Rouge").compute_score(a, b)[0]),
        (("CIDEr",), lambda: None, cider),
        (("SPICE",), lambda: java or _no_spice(), lambda a, b: _scorer("spice.spice", "Spice").compute_score(a, b)[0]),
    ]
    for names, unusable, run in runs:
        if why := unusable():
            skipped |= dict.fromkeys(names, why)
            continue
        try:
            values = np.atleast_1d(run(known, given))
            scores |= dict(zip(names, map(float, values), strict=True))
        except Exception as error:  # one metric that fails here must not cost the others
            skipped |= dict.fromkeys(names, f"failed: {_why(error)}")
    return CaptionScores(scores, skipped, tokenizer, len(captions), missing, words, each)


def _scorer(module: str, name: str, *arguments: Any) -> Any:
    return getattr(importlib.import_module(f"pycocoevalcap.{module}"), name)(*arguments)


def _bleu(known: Any, given: Any) -> Any:
    return _scorer("bleu.bleu", "Bleu", 4).compute_score(known, given, verbose=0)[0]


def _meteor(known: Any, given: Any) -> Any:
    meteor = _scorer("meteor.meteor", "Meteor")
    try:
        return meteor.compute_score(known, given)[0]
    finally:
        # Its __del__ waits for this lock, and compute_score keeps it where it fails: that would be for ever.
        with suppress(RuntimeError):
            meteor.lock.release()


def _no_spice() -> str | None:
    spec = find_spec("pycocoevalcap.spice")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if list(Path(place, "lib").glob("stanford-corenlp-*-models.jar")):
            return None
    return "its models are not there (python -m pycocoevalcap.spice.get_stanford_models downloads them)"


def _ptb(texts: dict[int, list[str]]) -> dict[int, list[str]]:
    """Tokenized as for published numbers. The tokenizer works line by line, and drops a "." that stands alone."""
    lines = {i: [{"caption": " ".join(text.split()) or "."} for text in rows] for i, rows in texts.items()}
    done = _scorer("tokenizer.ptbtokenizer", "PTBTokenizer").tokenize(lines)
    if any(len(done.get(i, ())) != len(rows) for i, rows in texts.items()):
        raise ValueError("it gives back another number of lines")
    return done


def _plain(texts: dict[int, list[str]]) -> dict[int, list[str]]:
    spaces = dict.fromkeys(map(ord, '.,:;!?"()[]{}`'), " ")
    return {i: [" ".join(text.lower().translate(spaces).split()) for text in rows] for i, rows in texts.items()}


def _why(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"its program ended with {error.returncode}"
    return " ".join(str(error).split())[:200] or type(error).__name__
