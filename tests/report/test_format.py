"""Numbers have one format, and the frame of a page keeps text text."""

from __future__ import annotations

import base64
import io
import math

import pytest
from PIL import Image

from lavit.page import decimal, document, duration, image_tag, integer, percent, table


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


@pytest.mark.parametrize(("photograph", "kind"), [(False, "png"), (True, "jpeg")])
def test_images_travel_inside_the_page(photograph: bool, kind: str) -> None:
    image = Image.new("RGB", (12, 7), (200, 30, 40))
    tag = image_tag(image, 'a "red" <box>', photograph=photograph)
    assert 'alt="a &quot;red&quot; &lt;box&gt;"' in tag and 'width="12" height="7"' in tag
    data = tag.split(f"data:image/{kind};base64,")[1].split('"')[0]
    with Image.open(io.BytesIO(base64.b64decode(data))) as back:
        pixel = back.convert("RGB").getpixel((5, 3))
        assert back.size == image.size and isinstance(pixel, tuple)
        assert max(abs(a - b) for a, b in zip(pixel, (200, 30, 40), strict=True)) <= (3 if photograph else 0)


def test_titles_and_names_are_escaped() -> None:
    assert "<title>&lt;b&gt;</title>" in document("<b>", "")
    assert "&lt;b&gt;" in table(["<b>"], [["x"]], "<i>") and "<i>" not in table(["<b>"], [["x"]], "<i>")


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError):
        table(["a", "b"], [["1", "2", "3"]], "t")
