"""Numbers have one format, and words from outside change nothing around them."""

from __future__ import annotations

import math

import pytest

from lavit.report.format import brief, decimal, duration, integer, percent, plain, whole_letters


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (291.7, "4 min 52 s"),
        (3599.6, "1 h 0 min"),
        (7380, "2 h 3 min"),
    ],
)
def test_durations_carry_into_the_next_unit(seconds: float, words: str) -> None:
    assert duration(seconds).replace("\u202f", " ") == words


def test_numbers_without_a_value_are_a_dash() -> None:
    assert {f(math.nan) for f in (integer, decimal, percent, duration)} == {"–"}
    assert (
        integer(1234567) == "1\u202f234\u202f567"
        and decimal(-0.5, 1) == "\u22120.5"
        and percent(0.9666) == "96.7\u202f%"
    )


@pytest.mark.parametrize("character", ["\u202e", "\u202a", "\u2066", "\u2067", "\u2069", "\x00", "\x1b", "\udcff"])
def test_what_turns_others_around_or_cannot_be_written_is_replaced(character: str) -> None:
    assert plain(f"a{character}b") == "a\ufffdb"
    plain(f"a{character}b").encode("utf-8")


@pytest.mark.parametrize("words", ["<b>\"x\" & 'y'</b>", "a\tb\nc", "日本語 עברית café \U0001f600", "1\u202f000"])
def test_other_words_stay_as_they_are(words: str) -> None:
    assert plain(words) == words


def test_letters_in_parts_are_put_together():
    assert whole_letters("cafe\u0301 n\u0303 \uac00") == "caf\u00e9 \u00f1 \uac00"


def test_what_is_too_long_ends_in_dots_and_the_rest_stays_as_it_is():
    assert brief("a b", 3) == "a b" and brief("a b c", 3) == "a…" and len(brief("x" * 500)) == 160
