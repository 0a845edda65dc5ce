"""The standard accuracy of visual question answering: an answer is right to the degree that people gave it.

Source: Antol et al., VQA: Visual Question Answering (ICCV 2015), the rules of its evaluation page,
http://www.visualqa.org/evaluation.html, and the official script, vqaEval.py of https://github.com/GT-Vision-Lab/VQA, in
its form since March 2021.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from lavit.data.record import Record
from lavit.language.postprocessing import cut_answer as cut_answer
from lavit.shapes.questions import Question, chance

FULL = 3
"""So many people with the same answer make it entirely right; fewer, where there are not so many."""

_NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBERS["none"] = "0"
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"[0-9],[0-9]")
_PERIOD = re.compile(r"\.(?![0-9])")
_PERIODS = 32
"""So many periods go at most: the script hands over a flag of this value where the count belongs."""

# The contractions of the rules as they are written properly; each is also known with any one apostrophe missing.
# (The rules' table has one of them backwards, somebody'd to somebodyd: both are the same answer either way.)
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
    something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't
    we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll
    you're you've
""".split()
_APOSTROPHES = {
    word[:i] + word[i + 1 :]: word for word in _CONTRACTIONS for i, letter in enumerate(word) if letter == "'"
}


class Answered(Protocol):
    """What a question needs to be judged; `lavit.data.annotations.VQAItem` is one."""

    @property
    def question_id(self) -> Hashable: ...
    @property
    def answers(self) -> Sequence[str]: ...
    @property
    def question_type(self) -> str: ...
    @property
    def answer_type(self) -> str: ...


@dataclass(frozen=True)
class Share:
    """A mean accuracy, 0 to 1, and of how many questions; beside chance: the accuracy of ``guess``, the answer that is
    usual for most of these questions, given to each of them."""

    accuracy: float
    questions: int
    constant: float
    guess: str


@dataclass(frozen=True)
class VQAScore(Record):
    """Accuracy over all answered questions and by type, of those that have one. ``unanswered``: ids of questions
    without an answer, which do not count."""

    overall: Share
    by_question_type: dict[str, Share]
    by_answer_type: dict[str, Share]
    unanswered: list[Hashable] = field(default_factory=list)


@dataclass(frozen=True)
class GuessedShare:
    """A mean accuracy of how many questions, beside what the best answer given always scores, and uniform ones."""

    accuracy: float
    questions: int
    constant: float
    uniform: float


@dataclass(frozen=True)
class SceneAnswerReport(Record):
    """Questions of the shapes world: over all, and by kind. Chance over all is that of each kind's own guess."""

    overall: GuessedShare
    by_kind: dict[str, GuessedShare]


@lru_cache(maxsize=2**16)  # a data set has the same answers again and again
def normalize_answer(text: str) -> str:
    """An answer as it is compared: lower case, without articles, punctuation and periods (but for decimals), number
    words up to ten as digits, contractions with their apostrophe.

    Punctuation becomes a space, or nothing where it stands beside a space; if a comma is between digits anywhere in the
    text, then nothing everywhere. Apostrophe and colon stay, as do periods after the first 32. Answers have the same
    normal form here where they have in the official script, its oddities included.
    """
    text = _one_line(text)
    thousands = _DIGIT_COMMA.search(text) is not None
    plain = text
    for mark in _PUNCTUATION:
        if mark in text:
            plain = plain.replace(mark, "" if thousands or f"{mark} " in text or f" {mark}" in text else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", plain, count=_PERIODS).lower().split()]
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, truths: Sequence[str]) -> float:
    """How right an answer is, 0 to 1, as the official script has it: the mean, over the ways to leave one of the people
    out, of min(n / 3, 1), where n of the others gave the same answer.

    truths: what each of the people answered, ten in VQAv2. The rule as it stands needs more than three: of three or two
    people n / 2 and n / 1 take the place of n / 3, so that what all have answered is entirely right; of one person an
    answer is right, 1, or wrong, 0.
    Of more than three people, answer and truths are normalised only where the truths differ from each other. Where all
    are the same text, the answer must be that text, but for line breaks, tabs, and spaces around it: "2" scores 0 for
    ten times "two". Of three people or fewer, for whom no script gives figures, they are always normalised.
    The script of before March 2021 always normalised the answer, and never took articles and number words out of the
    truths. Many copies of it are in use; the release's also cuts beginnings such as "it is" from the answer. Figures
    made with these may differ.
    Raises ValueError where there is no truth.
    """
    if isinstance(truths, str) or not truths:
        raise ValueError(f"truths: expected the answers of at least one person, got {truths!r}")
    given, known = _one_line(answer), [_one_line(truth) for truth in truths]
    if len(set(known)) > 1 or len(known) <= FULL:
        given, known = normalize_answer(given), [normalize_answer(truth) for truth in known]
    same = [truth == given for truth in known]
    if len(same) == 1:
        return float(same[0])
    total, full = sum(same), min(FULL, len(same) - 1)
    return sum(min((total - mine) / full, 1.0) for mine in same) / len(same)


def evaluate_vqa(items: Iterable[Answered], answers: Mapping[Hashable, str]) -> VQAScore:
    """answers by question id -> the score, of `vqa_accuracy`; the official script gives it in percent, with 2 decimals.

    Raises ValueError for answers to questions that are not among the items, for a question asked twice, and where no
    question is answered.
    """
    judged: list[tuple[Answered, float]] = []
    unanswered, seen = [], set()
    for item in items:
        if item.question_id in seen:
            raise ValueError(f"items: question {item.question_id!r} is there twice")
        seen.add(item.question_id)
        if item.question_id not in answers:
            unanswered.append(item.question_id)
            continue
        try:
            judged.append((item, vqa_accuracy(answers[item.question_id], item.answers)))
        except ValueError as error:
            raise ValueError(f"question {item.question_id!r}: {error}") from None
    if unknown := [key for key in answers if key not in seen]:
        raise ValueError(f"answers: question {unknown[0]!r} is not among the items ({len(unknown)} such)")
    if not judged:
        raise ValueError(f"answers: expected an answer to one of {len(seen)} questions, got none")
    by_question = _shares(judged, lambda item: item.question_type)
    by_answer = _shares(judged, lambda item: item.answer_type)
    return VQAScore(_share(judged), by_question, by_answer, unanswered)


def score_scene_answers(asked: Sequence[Question], answers: Sequence[str]) -> SceneAnswerReport:
    """Answers to the shapes world's questions, right where they are the true one (both normalised), beside chance.

    Raises ValueError for another number of answers than questions, or none.
    """
    if len(answers) != len(asked) or not asked:
        raise ValueError(f"answers: expected one for each of {len(asked)} questions (not 0), got {len(answers)}")
    right: dict[str, list[float]] = {}
    for question, answer in zip(asked, answers, strict=True):
        same = normalize_answer(answer) == normalize_answer(question.answer)
        right.setdefault(question.kind, []).append(float(same))
    levels = chance()
    by_kind = {
        kind: GuessedShare(sum(right[kind]) / len(right[kind]), len(right[kind]), level.constant, level.uniform)
        for kind, level in levels.items()
        if kind in right
    }
    n = len(asked)
    means = (sum(getattr(k, what) * k.questions for k in by_kind.values()) / n for what in ("constant", "uniform"))
    return SceneAnswerReport(GuessedShare(sum(map(sum, right.values())) / n, n, *means), by_kind)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _commonest(texts: Iterable[str]) -> str:
    """The first of those equal."""
    return Counter(texts).most_common(1)[0][0]


def _share(judged: Sequence[tuple[Answered, float]]) -> Share:
    accuracies = [accuracy for _, accuracy in judged]
    # As people spell it: where all say the same, an answer is not normalised.
    usual = [_commonest(map(_one_line, item.answers)) for item, _ in judged]
    meant = _commonest(map(normalize_answer, usual))
    guess = _commonest(text for text in usual if normalize_answer(text) == meant)
    guessed = [vqa_accuracy(guess, item.answers) for item, _ in judged]
    return Share(sum(accuracies) / len(judged), len(judged), sum(guessed) / len(judged), guess)


def _shares(judged: Sequence[tuple[Answered, float]], kind: Callable[[Answered], str]) -> dict[str, Share]:
    groups: dict[str, list[tuple[Answered, float]]] = {}
    for one in judged:
        groups.setdefault(kind(one[0]), []).append(one)
    return {name: _share(groups[name]) for name in sorted(groups) if name}
