"""What a model says of a folder's pictures, item by item: captions and answers, beside what guessing scores."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from lavit.data.annotations import CaptionItem, VQAItem
from lavit.evaluation.runner import Skipped
from lavit.evaluation.tasks import Model, answer_folder, caption_folder
from lavit.evaluation.vqa import vqa_accuracy


@dataclass(frozen=True)
class Said:
    """A picture, its true captions, and the model's. exact: it is one of them, but for case, spaces and the marks at
    the ends. alike: share of its words and of a true caption's that are common, in their order, of the nearest one."""

    path: Path
    true: tuple[str, ...]
    said: str
    exact: bool
    alike: float

    @property
    def nearest(self) -> str:
        """The true caption that it is compared with."""
        return max(self.true, key=lambda text: _alike(self.said, text), default="")


@dataclass(frozen=True)
class Answered:
    """A question about a picture, people's answers, the model's, and the accuracy of that, 0 to 1. kind: of question,
    or of answer where that is not known."""

    path: Path
    question: str
    true: tuple[str, ...]
    said: str
    accuracy: float
    kind: str

    @property
    def usual(self) -> str:
        """What most people answered."""
        return Counter(self.true).most_common(1)[0][0]


@dataclass(frozen=True)
class FolderCaptions:
    """constant: share of pictures that the one caption fits that fits most: what saying always the same scores at most.
    scores: other metrics by name, and lacking: those that could not be computed, with the reason."""

    said: list[Said]
    constant: float
    scores: dict[str, float]
    lacking: dict[str, str]
    skipped: list[Skipped]

    @property
    def exact(self) -> float:
        return sum(one.exact for one in self.said) / len(self.said)


@dataclass(frozen=True)
class FolderAnswers:
    """constant: mean accuracy of the best answer to each kind of question that is always the same. kinds: of each kind
    of question (accuracy, constant, number); none where there is only one."""

    answered: list[Answered]
    constant: float
    kinds: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        return sum(one.accuracy for one in self.answered) / len(self.answered)


def say_captions(model: Model, processor: Any, items: Sequence[CaptionItem], **settings: Any) -> FolderCaptions:
    """Captions of items that have true ones. settings: of `caption_folder`; it raises as that does."""
    report = caption_folder(model, processor, items, **settings)
    known = {item.image_id: item for item in items}
    said = []
    for row in report.results:
        item, text = known[row["image_id"]], row["caption"]
        exact = any(_plain(text) == _plain(true) for true in item.captions)
        alike = max((_alike(text, true) for true in item.captions), default=0.0)
        said.append(Said(item.image, item.captions, text, exact, alike))
    fits = Counter(text for one in said for text in {_plain(true) for true in one.true})
    constant = max(fits.values(), default=0) / len(said)
    score = report.score or {}
    scores = {name: value for name, value in score.get("scores", {}).items() if isinstance(value, float)}
    return FolderCaptions(said, constant, scores, dict(score.get("skipped", {})), report.skipped)


def give_answers(model: Model, processor: Any, items: Sequence[VQAItem], **settings: Any) -> FolderAnswers:
    """Answers to questions that people have answered. settings: of `answer_folder`; it raises as that does."""
    report = answer_folder(model, processor, items, **settings)
    left_out = {item.index for item in report.skipped}
    asked = [item for index, item in enumerate(items) if index not in left_out]
    answered = [
        Answered(item.image, item.question, item.answers, row["answer"], score, item.question_type or item.answer_type)
        for item, row, score in zip(asked, report.results, report.item_scores, strict=True)
    ]
    groups: dict[str, list[Answered]] = defaultdict(list)
    for one in answered:
        groups[one.kind].append(one)
    constants = {kind: _constant(own) for kind, own in groups.items()}
    constant = sum(constants[kind] * len(own) for kind, own in groups.items()) / len(answered)
    kinds = {}
    if len(groups) > 1:
        for kind, own in sorted(groups.items(), key=lambda pair: -len(pair[1])):
            kinds[kind] = sum(one.accuracy for one in own) / len(own), constants[kind], len(own)
    return FolderAnswers(answered, constant, kinds, report.skipped)


def _constant(answered: Sequence[Answered]) -> float:
    """The mean accuracy of the usual answer to all these questions."""
    usual = Counter(one.usual for one in answered).most_common(1)[0][0]
    return sum(vqa_accuracy(usual, one.true) for one in answered) / len(answered)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .,;:!?\"'")


def _alike(first: str, second: str) -> float:
    return SequenceMatcher(None, _plain(first).split(), _plain(second).split(), autojunk=False).ratio()
