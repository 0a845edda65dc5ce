"""The report shows every painting with what is read from it, and every rate beside chance and what can be reached."""

from __future__ import annotations

from dataclasses import replace

from plausible import WAYS, Outline, plausible_pixels

from lavit.report import PixelsResult, QuickstartResult, render_report
from lavit.report.format import integer, percent


def rendered(pixels: PixelsResult | None) -> str:
    return render_report(QuickstartResult(command="x", seconds=9.0, device="CPU", threads=2, seed=0, pixels=pixels))


def test_every_painting_and_every_rate_is_there():
    html = rendered(plausible_pixels())
    for rates in WAYS.values():
        for rate in rates.values():
            assert percent(rate.model) in html and percent(rate.chance) in html
    assert html.count("Painted from image: ") >= 3 and html.count("painted again") >= 3
    assert html.count("data:image/png") == 12
    assert percent(0.021) in html and percent(0.034) in html
    assert integer(318_002) in html
    assert "runs/quickstart/model/pixels" in html and "num_inference_steps 20" in html
    assert f'<a href="#paintings"><b>{percent(0.693)}</b>' in html
    assert "U-Net" in Outline(html).words and len(Outline(html).all("svg")) == 2


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
    assert 'href="#paintings"' not in html
