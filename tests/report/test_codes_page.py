"""The page of codes: every code that was collected, the most used first, with its patches; the same as a picture."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from plausible import EVIL, Outline

from lavit.data.stream import Skipped
from lavit.evaluation.code_patches import Code, CodePatches
from lavit.report.codes_page import draw_codes, draw_patches, render_codes


def code(number, uses, colour, count, variance=0.02):
    patches = np.full((count, 8, 8, 3), colour, np.uint8)
    return Code(number, uses, uses / 20, 0.75, 0.5, variance, patches)


@pytest.fixture
def found():
    codes = [code(5, 12, (200, 0, 0), 10), code(2, 7, (0, 0, 200), 3), code(0, 1, (9, 9, 9), 1, float("nan"))]
    return CodePatches(codes, np.array([1, 0, 7, 0, 0, 12]), 4, 20, 4, 2, 0.04, 0.01, 2.5, [])


def test_every_code_is_on_the_page_in_its_order_with_its_figures(found):
    page = render_codes(found, {"model": "tok"})
    outline = Outline(page)
    assert outline.open == [] and re.findall(r"<b>code (\d+)</b>", page) == ["5", "2", "0"]
    assert len(outline.all("img")) == 3 and all(a["alt"] for a in outline.all("img"))
    said = " ".join(" ".join(outline.words).replace("\u202f", " ").split())
    for wanted in ("3 of 6 codes in use; 3 never chosen", "75.0 % of the variance of pixels", "60.0 % of tokens", "tok",
                   "chosen 12 times, cosine 0.750, distance 0.500, spread 50.0 %", "spread –"):  # fmt: skip
        assert wanted in said, wanted
    assert not re.findall(r"https?://|<script", page)


def test_a_patch_is_enlarged_whole_and_its_outline_covers_none_of_its_pixels(found):
    sheet = draw_patches(found.codes[0], found)
    factor = 7  # 8 pixels to at least 56
    assert sheet.size == (8 * 59 - 3, 2 * 59 - 3)
    inside = np.asarray(sheet)[2 * factor : 6 * factor, 2 * factor : 6 * factor]
    assert (inside == (200, 0, 0, 255)).all()
    frame = np.asarray(sheet)[2 * factor - 1, 2 * factor : 6 * factor]
    assert (frame == (0, 0, 0, 255)).all()
    assert sheet.getpixel((57, 5))[3] == 0  # between two
    assert sheet.getpixel((200, 100))[3] == 0  # 10 patches: the second row has two


def test_the_page_keeps_what_is_between_patches_transparent(found):
    source = re.search(r'src="data:image/png;base64,([^"]+)"', render_codes(found, {}))
    assert Image.open(io.BytesIO(base64.b64decode(source[1]))).mode == "RGBA"


def test_the_picture_has_every_code(found):
    picture = np.asarray(draw_codes(found))
    for colour in ((200, 0, 0), (0, 0, 200), (9, 9, 9)):
        assert (picture == colour).all(-1).any()


def test_hostile_words_change_nothing(found):
    hurt = CodePatches(*[getattr(found, f) for f in found.__dataclass_fields__ if f != "skipped"],
                       [Skipped(0, EVIL, EVIL)])  # fmt: skip
    outline = Outline(render_codes(hurt, {EVIL: EVIL}))
    assert outline.open == [] and not outline.all("script")
    assert not any(name.startswith("on") for _, a in outline.tags for name in a)


def test_pictures_of_one_colour_have_no_spread(found):
    flat = CodePatches([code(1, 20, (1, 1, 1), 2, 0.0)], np.array([0, 20]), 2, 20, 4, 2, 0.0, 0.0, 1.0, [])
    assert "nan" not in " ".join(Outline(render_codes(flat, {})).words).lower()
    draw_codes(flat)
