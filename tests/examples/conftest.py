"""The examples are no part of the installed package: they are found from the repository's root."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)


@pytest.fixture(scope="session")
def found():
    """All emoji that the glyphs that stand in for a font have."""
    from plain_glyphs import PlainGlyphs

    from examples.emoji.pictures import find_emoji

    return find_emoji(PlainGlyphs())
