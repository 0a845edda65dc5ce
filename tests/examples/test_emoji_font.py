"""The font itself, where it is installed: what it has, and that it draws the golden pictures."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from examples.emoji.draw import truth
from examples.emoji.glyphs import PACKAGE, FontGlyphs, find_font
from examples.emoji.names import KINDS
from examples.emoji.people import TONES
from examples.emoji.pictures import Picture, find_emoji, render
from lavit.evaluation.perceptual import psnr

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "emoji"

try:
    find_font()
    missing = "" if features.check("raqm") else "needs Pillow with raqm: libraqm and fribidi"
except FileNotFoundError:
    missing = f"needs a colour-emoji font: the package {PACKAGE}"
pytestmark = pytest.mark.skipif(bool(missing), reason=missing)


@pytest.fixture(scope="module")
def glyphs():
    return FontGlyphs()


def test_a_sequence_that_the_font_has_not_is_no_glyph(glyphs):
    for there in ("👩🏽‍🚒", "🇨🇦", "5️⃣", "🌵"):
        assert glyphs.draw(there, 32).size == (32, 32)
    for not_there in ("👩‍🍎", "🍎🏽", "a", "\U0010fffe", "\u2029"):
        assert glyphs.draw(not_there, 32) is None


def test_glyphs_are_clear_around_and_keep_their_colours_at_soft_edges(glyphs):
    pixels = np.asarray(glyphs.draw("❤", 64))
    assert (pixels[0, :, 3] == 0).all() and (pixels[..., 3] == 255).any()
    soft = pixels[(pixels[..., 3] > 60) & (pixels[..., 3] < 200)]
    assert len(soft) > 20 and (soft[:, 0] > 150).all()  # red, not darkened by the transparent black behind


def test_the_font_has_all_kinds_and_draws_the_golden_pictures(glyphs):
    found = find_emoji(glyphs)
    counts = Counter(drawing.emoji.kind for drawing in found.drawings)
    assert len(found.drawings) > 2500 and set(counts) == set(KINDS) and min(counts.values()) > 10
    tones = Counter(drawing.emoji.tone for drawing in found.drawings)
    assert len({tones[tone] for tone in TONES}) == 1  # whatever has one has all
    names = {drawing.emoji.full_name: drawing for drawing in found.drawings}
    golden = json.loads((GOLDEN / "world.json").read_text())["pictures"]
    pictures = [Picture(names[entry["full_name"]], entry["background"]) for entry in golden]
    facts = ("file", "code_points", "kind", "tone", "colour", "colour_clear", "low_contrast", "caption")
    for picture, entry in zip(pictures, golden, strict=True):
        assert {key: truth(picture)[key] for key in facts} == {key: entry[key] for key in facts}
    drawn = map(np.asarray, render(glyphs, pictures, 64))
    right = (np.asarray(Image.open(GOLDEN / entry["file"])) for entry in golden)
    # The drawings of another release of the font differ a little.
    assert np.median(list(map(psnr, drawn, right))) > 30
