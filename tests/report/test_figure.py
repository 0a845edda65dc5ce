"""The figure shows the run that it was given, the same one each time, and survives missing parts."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from plausible import hostile, plausible_language, plausible_pixels, plausible_result

from lavit.report import (
    Answer,
    LanguageResult,
    Painting,
    Photo,
    PixelsResult,
    ProbeRow,
    QuickstartResult,
    Rate,
    Request,
    Scene,
    Spoken,
)
from lavit.report.figure import HEIGHT, LANGUAGE_HEIGHT, PIXELS_HEIGHT, WIDTH, draw_figure, spread, write_figure


def scene(tokens: int, caption: str = "a red circle top left") -> Scene:
    image = np.full((32, 32, 3), (0, 90, 200), np.uint8)
    return Scene(image, np.arange(64) < tokens, caption, tokens, 0.9, caption, True)


def run(**parts) -> QuickstartResult:
    return QuickstartResult("lavit quickstart", 60.0, "CPU", 2, 0, **parts)


FULL = {
    "scenes": [scene(n) for n in (30, 5, 20, 64, 11)],
    "photos": [
        Photo("cat", "scikit-image", np.full((60, 40 * (i + 1), 3), (200, 60, 0), np.uint8), np.ones(64, bool), 64, 0.7)
        for i in range(4)
    ],
    "content": {1: [4, 5, 5], 2: [], 3: [20, 22]},
    "cosines": [0.9, 0.8],
    "code_counts": [3, 0, 1],
    "probe": [ProbeRow("what stands in a cell " * 9, 0.9, 0.95, 0.1)],
}


def pixels(image: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(image) == np.array(colour)).all(-1).sum())


def test_figure_is_a_png_of_its_size_and_reproducible(tmp_path) -> None:
    for name in ("a.png", "b.png"):
        write_figure(run(**FULL), tmp_path / name)
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG" and image.size == (2 * WIDTH, 2 * HEIGHT)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("left_out", [*FULL, "all"])
def test_missing_parts_leave_the_others(left_out: str) -> None:
    parts = {} if left_out == "all" else {name: part for name, part in FULL.items() if name != left_out}
    image = draw_figure(run(**parts))
    assert image.size == (2 * WIDTH, 2 * HEIGHT)
    assert (pixels(image, (0, 90, 200)) > 0) == ("scenes" in parts)
    assert (pixels(image, (200, 60, 0)) > 0) == ("photos" in parts)


def language(words: str = "a red circle top left", scenes: int = 3) -> LanguageResult:
    image = np.full((32, 32, 3), (0, 140, 60), np.uint8)
    spoken = [Spoken(image, "a red circle top left", words, [Answer(words, "1", words, False)] * 4)] * scenes
    requests = [Request(words, "a blue circle top left", 20)] * scenes
    return LanguageResult(
        10, 40, {"exact": Rate(0.5, 0.1)}, 1.0, {"mean": Rate(0.5, 0.1)}, {}, {}, spoken=spoken, requests=requests
    )


@pytest.mark.parametrize("scenes", [0, 1, 3])
def test_a_language_stage_is_drawn_below_the_rest(scenes: int) -> None:
    image, alone = draw_figure(run(**FULL, language=language(scenes=scenes))), draw_figure(run(**FULL))
    assert image.size == (2 * WIDTH, 2 * (HEIGHT + LANGUAGE_HEIGHT))
    assert np.array_equal(np.asarray(image)[: 2 * HEIGHT - 60], np.asarray(alone)[:-60])
    assert pixels(image, (0, 140, 60)) == min(scenes, 2) * 128**2


COLOURS = {"image": (0, 120, 60), "text": (160, 0, 120), "image and text": (0, 150, 150), "sound": (90, 60, 30)}


def painted(*ways: str, words: str = "a red circle top left", scenes: int = 3, right: bool = True) -> PixelsResult:
    def flat(colour: tuple[int, int, int]) -> np.ndarray:
        return np.full((32, 32, 3), colour, np.uint8)

    asked = {way: words for way in ways if " " in way}
    wanted = {way: f"{words} changed" for way in asked}
    read = {way: wanted.get(way, words) if right else "nothing" for way in ways}
    one = Painting(flat((120, 120, 0)), words, {way: flat(COLOURS[way]) for way in ways}, read, asked, wanted)
    return PixelsResult(10, {way: {"recall": Rate(0.5, 0.1, 0.9)} for way in ways}, paintings=[one] * scenes)


@pytest.mark.parametrize("spoken", [None, language()])
@pytest.mark.parametrize("ways", [("image",), ("image", "text"), ("image", "text", "image and text"), ("sound",)])
def test_what_is_painted_in_every_way_there_is_stands_below_the_rest(spoken, ways: tuple[str, ...]) -> None:
    above = draw_figure(run(**FULL, language=spoken))
    image = draw_figure(run(**FULL, language=spoken, pixels=painted(*ways)))
    assert image.size == (2 * WIDTH, above.height + 2 * PIXELS_HEIGHT)
    assert np.array_equal(np.asarray(image)[: above.height - 60], np.asarray(above)[:-60])
    shown = {pixels(image, COLOURS[way]) for way in ways} | {pixels(image, (120, 120, 0))}
    assert len(shown) == 1 and shown.pop() >= 2 * 100**2  # the first two, each as large as the scene
    assert all(pixels(image, COLOURS[way]) == 0 for way in COLOURS if way not in ways)


def test_a_painting_is_judged_by_what_was_asked_for_in_its_way() -> None:
    blue, amber = (36, 87, 197), (163, 76, 0)
    ways = ("image", "text", "image and text")
    right, wrong = (draw_figure(run(pixels=painted(*ways, right=right))) for right in (True, False))
    assert pixels(right, amber) == 0 < pixels(wrong, amber)
    assert pixels(right, blue) > pixels(wrong, blue)


def test_a_pixel_stage_that_painted_nothing_says_so() -> None:
    image = draw_figure(run(**FULL, pixels=painted("image", scenes=0)))
    assert image.size == (2 * WIDTH, 2 * (HEIGHT + PIXELS_HEIGHT)) and pixels(image, (120, 120, 0)) == 0


def test_more_kept_patches_show_more_of_the_scene() -> None:
    few, many = (pixels(draw_figure(run(scenes=[scene(n)])), (0, 90, 200)) for n in (8, 48))
    assert many == pytest.approx(6 * few, rel=0.1)  # outlines take a share of a patch that depends on its neighbours


@pytest.mark.parametrize("words", ["word " * 60, "w" * 300])
def test_nothing_is_drawn_into_the_margin(words: str) -> None:
    long = FULL | {"scenes": [scene(64, words)], "language": language(words), "pixels": painted(*COLOURS, words=words)}
    page = np.asarray(draw_figure(run(**long)))
    frame = np.ones(page.shape[:2], bool)
    frame[30:-30, 40:-40] = False
    assert (page[frame] == 255).all()


def test_words_from_outside_are_drawn_as_they_are_without_a_warning() -> None:
    whole = replace(plausible_result(), language=plausible_language(), pixels=plausible_pixels())
    odd = hostile(whole, "$x^2$ $ \\frac 日本 \U0001f9a5 \u202e\u2067 \udcff\x00 ")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_figure(odd).size == draw_figure(whole).size


def test_spread_is_an_even_sample_by_tokens() -> None:
    scenes = [scene(n) for n in (9, 1, 5, 3, 7)]
    assert [s.tokens for s in spread(scenes, 3)] == [1, 5, 9]
    assert [s.tokens for s in spread(scenes[:2], 4)] == [1, 9]
    assert spread([], 4) == []
