"""What a model says of a folder's pictures, item by item: captions and answers, beside what guessing scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavit.data.annotations import CaptionItem, VQAItem
from lavit.evaluation.caption_words import normalize_caption, token_f1
from lavit.evaluation.runner import Skipped
from lavit.evaluation.tasks import Model, answer_folder, caption_folder


@dataclass(frozen=True)
class Said:
    """A picture, its true captions, and the model's. exact, f1: of the nearest true caption, as
    `lavit.evaluation.caption_words` has them: whether it has the same words, and how many they share."""

    path: Path
    true: tuple[str, ...]
    said: str
    exact: bool
    f1: float

    @property
    def nearest(self) -> str:
        """The true caption that it is compared with."""
        return max(self.true, key=lambda text: _f1(self.said, text), default="")


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
    """exact, f1: share of the captions that are a true one, and the mean F1; guessed_exact, guessed_f1: the same of the
    best caption that is said of every picture. scores: other metrics by name, as far as they could be computed."""

    said: list[Said]
    exact: float
    f1: float
    guessed_exact: float
    guessed_f1: float
    scores: dict[str, float]
    skipped: list[Skipped]


@dataclass(frozen=True)
class FolderAnswers:
    """accuracy: the mean; constant: that of always the usual answer to each kind of question. kinds: of each kind
    (accuracy, constant, number); none where there is only one."""

    answered: list[Answered]
    accuracy: float
    constant: float
    kinds: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


def say_captions(model: Model, processor: Any, items: Sequence[CaptionItem], **settings: Any) -> FolderCaptions:
    """Captions of items that have true ones. settings: of `caption_folder`; it raises as that does."""
    report = caption_folder(model, processor, items, **settings)
    known = {item.image_id: item for item in items}
    said = []
    for row in report.results:
        item, text = known[row["image_id"]], row["caption"]
        exact = normalize_caption(text) in map(normalize_caption, item.captions)
        said.append(Said(item.image, item.captions, text, exact, max(_f1(text, true) for true in item.captions)))
    score: Any = report.score
    words = score["words"]
    guessed = words["guessed_exact"]["value"], words["guessed_f1"]["value"]
    return FolderCaptions(said, words["exact"], words["f1"], *guessed, score["scores"], report.skipped)


def give_answers(model: Model, processor: Any, items: Sequence[VQAItem], **settings: Any) -> FolderAnswers:
    """Answers to questions that people have answered. settings: of `answer_folder`; it raises as that does."""
    report = answer_folder(model, processor, items, **settings)
    left_out = {item.index for item in report.skipped}
    asked = [item for index, item in enumerate(items) if index not in left_out]
    answered = [
        Answered(item.image, item.question, item.answers, row["answer"], score, item.question_type or item.answer_type)
        for item, row, score in zip(asked, report.results, report.item_scores, strict=True)
    ]
    score: Any = report.score
    overall, types = score["overall"], score["by_question_type"] or score["by_answer_type"]
    kinds = {kind: (own["accuracy"], own["constant"], own["questions"]) for kind, own in types.items()}
    constant = overall["constant"]
    if sum(number for _, _, number in kinds.values()) == len(answered):
        constant = sum(guess * number for _, guess, number in kinds.values()) / len(answered)
    kinds = dict(sorted(kinds.items(), key=lambda pair: -pair[1][2])) if len(kinds) > 1 else {}
    return FolderAnswers(answered, overall["accuracy"], constant, kinds, report.skipped)


def _f1(first: str, second: str) -> float:
    return token_f1(normalize_caption(first), normalize_caption(second))
