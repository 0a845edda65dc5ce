"""Numbers in one format, and words from outside made safe to show beside ours."""

from __future__ import annotations

import math
import re
import unicodedata

THIN = "\u202f"
"""Narrow space that does not break: between thousands, and between a number and its unit."""
MISSING = "–"
# Control characters, lone halves of a pair (names of files can have both), and what turns the words around it.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(words: str) -> str:
    """Words that change nothing but themselves: each character that could is shown as U+FFFD."""
    return _UNSAFE.sub("\ufffd", words)


def brief(words: str, most: int = 160) -> str:
    """Words of a model, of which there may be any number: at most so many characters, with … for the rest."""
    return words if len(words) <= most else f"{words[: most - 1].rstrip()}…"


def whole_letters(words: str) -> str:
    """`plain` words to be drawn: letters that come in parts, as in names of files on a Mac, are put together (NFC).
    Fonts have the whole ones."""
    return unicodedata.normalize("NFC", plain(words))


def integer(value: float) -> str:
    """12345 -> 12 345."""
    return f"{value:,.0f}".replace(",", THIN) if math.isfinite(value) else MISSING


def decimal(value: float, places: int = 3) -> str:
    return f"{value:.{places}f}".replace("-", "\u2212") if math.isfinite(value) else MISSING


def percent(share: float) -> str:
    """0.967 -> 96.7 %."""
    return f"{100 * share:.1f}{THIN}%" if math.isfinite(share) else MISSING


def duration(seconds: float) -> str:
    """4.25 -> 4.2 s, 292 -> 4 min 52 s, 7380 -> 2 h 3 min."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f}{THIN}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60}{THIN}s"
    return f"{whole // 3600}{THIN}h {whole % 3600 // 60}{THIN}min"
