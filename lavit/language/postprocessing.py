"""Where a generated text ends for its reader: the release's postprocessing."""

from __future__ import annotations

import re


def cut_caption(text: str) -> str:
    """The release's postprocessing of a generated caption: cut at the first "." and stripped."""
    return text.split(".", 1)[0].strip()


def cut_answer(text: str) -> str:
    """The release's postprocessing of a generated answer: cut at the first newline, "," or "." and stripped."""
    return re.split(r"[\n,.]", text.strip(), maxsplit=1)[0].strip()
