"""The VQA accuracy against the rules of the official script, told again letter by letter, and against its own numbers.

The numbers under ``OFFICIAL`` are those that vqaEval.py of GT-Vision-Lab/VQA gives (commit a013f00, March 2021).
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from lavit.evaluation.vqa import vqa_accuracy

PEOPLE = (4, 10)
TEN = "zero one two three four five six seven eight nine ten".split()
MARKS = set(';/[]"{}()=+\\_-><@`,?!')
DIGITS = set("0123456789")
WITH_APOSTROPHE = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()


def official_word(word: str) -> str:
    """A number up to ten as digits; one apostrophe put back; somebody'd alone loses its own."""
    if word == "none" or word in TEN:
        return str(TEN.index(word)) if word in TEN else "0"
    if word == "somebody'd":
        return "somebodyd"
    for proper in WITH_APOSTROPHE:
        for place, letter in enumerate(proper):
            if letter == "'" and word == proper[:place] + proper[place + 1 :]:
                return proper
    return word


def official_form(text: str) -> str:
    groups = any(a in DIGITS and b == "," and c in DIGITS for a, b, c in zip(text, text[1:], text[2:], strict=False))
    gone = {
        m for m in MARKS if groups or any(a + b in (m + " ", " " + m) for a, b in zip(text, text[1:], strict=False))
    }
    spread = "".join(" " if letter in MARKS else letter for letter in text if letter not in gone)
    kept, periods = [], 0
    for place, letter in enumerate(spread):
        if letter == "." and spread[place + 1 : place + 2] not in DIGITS and periods < 32:
            periods += 1
        else:
            kept.append(letter)
    words = (official_word(word) for word in "".join(kept).lower().split())
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def official_accuracy(answer: str, truths: list[str]) -> float:
    answer, *truths = (text.replace("\n", " ").replace("\t", " ").strip() for text in (answer, *truths))
    if any(truth != truths[0] for truth in truths):
        answer, truths = official_form(answer), [official_form(truth) for truth in truths]
    shares = []
    for left_out in range(len(truths)):
        agree = [truth == answer for place, truth in enumerate(truths) if place != left_out]
        shares.append(min(1.0, sum(agree) / 3))
    return sum(shares) / len(shares)


OFFICIAL = [
    ("two", ["two"] * 10, 1.0),
    ("2", ["two"] * 10, 0.0),
    ("2", ["two"] * 9 + ["2"], 1.0),
    ("Two.", ["two", "2", " TWO\n", "the two", "two!", "three", "three", "3", "2,000", "2 000"], 1.0),
    ("1000", ["1,000", "1000", "1 000", "1,000 (about)", "1.000"], 0.5333333333333333),
    (
        "wellknown dog",
        [
            *["1,000 well-known", "well-known dog", "well - known dog"],
            "a wellknown dog",
            "Well-Known, Dog",
            "well known dog",
        ],
        0.27777777777777773,
    ),
    ("dont know", ["don't know", "dont know", "DON'T, KNOW", "don’t know", "do not know"], 0.8),
    ("somebodyd", ["somebody'd", "somebodyd", "Somebody'd?", "somebody"], 0.75),
    ("." * 33, ["." * 33, "." * 32, "." * 34, ".", "a"], 0.26666666666666666),
    ("3.5", ["3.5", "3.5.", "3. 5", "3 .5", "35", "three.five"], 0.5555555555555555),
    ("none", ["0", "zero", "None", "no one", "nothing", "none at all", "none", "the none", "zero", "0.0"], 1.0),
    ("١٢", ["١,٢", "١٢", "1,2", "12"], 0.25),  # its digits are those of ASCII
]

WORDS = [
    *TEN, "none", "None", "TWO", "eleven", *"0 1 2 3 10 1,000 1,0 3.5 .5 5. 2.50 1.000,5 2:50 ١,٢ .٣ ²".split(),
    *["a", "an", "the", "A", "The", "aN"], *WITH_APOSTROPHE, *(word.replace("'", "") for word in WITH_APOSTROPHE),
    *(word.replace("'", "", 1) for word in WITH_APOSTROPHE), *(word.replace("'", "’") for word in WITH_APOSTROPHE[:9]),
    *"somebody'd somebodyd let's lets she's shes I'm Im im Ive I'dve girl's DON'T Dont".split(),
    *"red blue dog cats U.S.A. well-known black/white e.g. café CAFÉ naïve Straße 東京 😀".split(), "." * 40, "a." * 40,
]  # fmt: skip
GAPS = [" "] * 12 + [
    "  ",
    "\n",
    "\t",
    "\r",
    "\u00a0",
    "\u2003",
    *MARKS,
    *(f"{m} " for m in MARKS),
    *(f" {m}" for m in MARKS),
]
GAPS += [", ", ",", ".", ". ", " .", "", "'", ":"]


def variations(draw: random.Random, words: list[str]) -> str:
    """The same answer, or nearly, as another person types it."""
    text = ""
    for word in words:
        if draw.random() < 0.2:
            text += draw.choice(["a", "an", "the", "The"]) + draw.choice(GAPS)
        if draw.random() < 0.3 and word.lower() in TEN:
            word = str(TEN.index(word.lower()))
        if draw.random() < 0.3 and "'" in word:
            word = word.replace("'", "", 1)
        if draw.random() < 0.2:
            word = word.replace(draw.choice(",."), "")
        change: Callable[[str], str] = draw.choice([str, str, str, str.upper, str.title, str.lower])
        text += change(word) + (draw.choice(GAPS) if draw.random() < 0.5 else " ")
    return draw.choice(["", "", " ", "\n", "\t"]) + (text if draw.random() < 0.2 else text.strip())


def random_answers(count: int, seed: int) -> list[tuple[str, list[str]]]:
    """(answer, truths). A quarter of them have all truths alike, or but for the space around them."""
    draw, drawn = random.Random(seed), []
    for _ in range(count):
        bases = [
            [draw.choice(WORDS) for _ in range(draw.choice([0, 1, 1, 1, 2, 3]))] for _ in range(draw.choice([1, 2, 3]))
        ]
        people = draw.randint(*PEOPLE)
        if draw.random() < 0.25:
            one = variations(draw, bases[0])
            truths = [draw.choice(["", "", "\n", " "]) + one for _ in range(people)]
        else:
            truths = [variations(draw, draw.choice(bases)) for _ in range(people)]
        answer = draw.choice(truths) if draw.random() < 0.3 else variations(draw, draw.choice(bases))
        drawn.append((answer, truths))
    return drawn


def test_accuracy_is_that_of_the_rules_told_letter_by_letter():
    drawn = random_answers(3000, 7)
    wanted = [official_accuracy(*one) for one in drawn]
    for one, accuracy in zip(drawn, wanted, strict=True):
        assert vqa_accuracy(*one) == accuracy, one
    # The drawing reaches all of it: answers that are wrong, in part right, and right, with truths alike and not.
    alike = [len({truth.strip() for truth in truths}) == 1 for _, truths in drawn]
    for kind in (True, False):
        found = [accuracy for accuracy, same in zip(wanted, alike, strict=True) if same == kind]
        assert min(found.count(0), found.count(1)) > 100
    assert sum(0 < accuracy < 1 for accuracy in wanted) > 300


@pytest.mark.parametrize("answer, truths, accuracy", OFFICIAL)
def test_accuracy_is_the_number_that_the_official_script_gave(answer, truths, accuracy):
    assert vqa_accuracy(answer, truths) == accuracy
