"""The report shows every painting with what is read from it, and every rate beside chance and what can be reached."""

from __future__ import annotations

import math
from dataclasses import replace

from lavit.data.shapes import ShapesWorld
from lavit.page import integer, percent
from lavit.report import Painting, PixelsResult, QuickstartResult, Rate, render_report
from lavit.report import pixels as page

WAYS = {
    "image": {"scene": Rate(0.731, 0.007), "recall": Rate(0.862, 0.0625), "cell": Rate(0.911, 0.5)},
    "text": {"scene": Rate(0.517, 0.007, 0.731), "recall": Rate(0.693, 0.0625, 0.862), "cell": Rate(0.804, 0.5, 0.911)},
}


def plausible_pixels(shown: int = 3) -> PixelsResult:
    scenes = ShapesWorld(4).scenes(shown)
    return PixelsResult(
        scenes=150,
        ways=WAYS,
        unclear={"image": 0.021, "text": 0.034},
        parameters={"U-Net": 318_002, "condition head": 9_312},
        steps=900,
        history=[{"step": s, "loss": math.exp(-s / 300), "images_per_second": 200.0 + s} for s in range(0, 901, 100)],
        settings={"painting": {"num_inference_steps": 20}},
        paintings=[
            Painting(
                image,
                text,
                {"image": image, "text": 255 - image, "image and text": image},
                {"image": text, "text": "<b>2 unclear</b>", "image and text": "a red circle"},
                {"image and text": "put <b>it</b>"},
                {"image and text": "a red circle"},
            )
            for image, text in zip(scenes.images, scenes.captions, strict=True)
        ],
        model_path="runs/quickstart/model/pixels",
    )


def rendered(pixels: PixelsResult | None) -> str:
    return render_report(QuickstartResult(command="x", seconds=9.0, device="CPU", threads=2, seed=0, pixels=pixels))


def test_every_painting_and_every_rate_is_there():
    html, result = rendered(plausible_pixels()), plausible_pixels()
    for rates in WAYS.values():
        for rate in rates.values():
            assert percent(rate.model) in html and percent(rate.chance) in html
    assert html.count("Painted from image: ") >= 3 and html.count("painted again") >= 3
    assert html.count("data:image/png") == 12
    assert percent(0.021) in html and percent(0.034) in html
    assert integer(318_002) in html
    assert "runs/quickstart/model/pixels" in html and "num_inference_steps 20" in html
    assert page.tiles(result)[0][1] == percent(0.693)
    assert page.learning(result)


def test_what_is_read_is_text_and_never_markup():
    html = rendered(plausible_pixels())
    assert "<b>2 unclear</b>" not in html and "&lt;b&gt;2" in html
    assert "<b>it</b>" not in html and html.count("put &lt;b&gt;it") == 3


def test_a_change_is_right_where_it_is_what_was_asked_for():
    html = rendered(plausible_pixels())
    assert html.count("✓ right") == 6 and html.count("✗ wrong") == 3  # again, changed; from words


def test_a_stage_that_is_missing_or_empty_is_told():
    assert "What it paints" not in rendered(None)
    hollow = replace(plausible_pixels(), ways={}, paintings=[], history=[], unclear={})
    html = rendered(hollow)
    assert "This run painted no held-out scene." in html and "This run judged no painting." in html
    assert page.tiles(hollow) == []
