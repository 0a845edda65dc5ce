"""The report holds every number of a run, stands alone, and survives hostile or missing input."""

from __future__ import annotations

import base64
import io
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from plausible import Outline, hostile, plausible_language, plausible_pixels, plausible_result

from lavit.report import (
    LanguageResult,
    ProbeRow,
    QuickstartResult,
    Stage,
    differing,
    mean_tokens,
    perplexity,
    phases,
    plots,
    render_report,
    write_report,
)
from lavit.report.page import embed


@pytest.fixture(scope="module")
def result() -> QuickstartResult:
    return plausible_result()


@pytest.fixture(scope="module")
def page(result: QuickstartResult) -> str:
    return render_report(result)


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    return Outline(page)


def test_page_is_well_formed_and_links_lead_to_its_parts(outline: Outline) -> None:
    assert outline.open == []
    anchors = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(anchors) == len(set(anchors))
    links = {a["href"] for a in outline.all("a")}
    assert links and links <= {f"#{name}" for name in anchors}


def test_page_asks_nothing_of_the_network(page: str, outline: Outline) -> None:
    assert not re.findall(r"https?://|url\(|@import|<script|<iframe", page)
    sources = [str(value) for _, a in outline.tags for key, value in a.items() if key in ("src", "href", "srcset")]
    assert all(value.startswith(("data:", "#")) for value in sources)


def test_every_picture_is_told_in_words(outline: Outline, result: QuickstartResult) -> None:
    assert len(outline.all("img")) == 2 * (len(result.scenes) + len(result.photos))
    assert all(a.get("alt") for a in outline.all("img"))
    assert all(a.get("role") == "img" and a.get("aria-label") for a in outline.all("svg"))
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels[:-1], levels[1:], strict=True))


def test_numbers_of_the_run_are_on_the_page(outline: Outline, result: QuickstartResult) -> None:
    thin = "\u202f"
    wanted = [
        f"4{thin}min 52{thin}s",
        f"96.7{thin}%",
        f"98.8{thin}%",
        "248 of 256",
        f"283{thin}424",
        result.command,
        result.model_path,
        result.versions["torch"],
        "steps 240–330",
    ]
    text = outline.text.replace(thin, " ")  # white space is folded in the text of the outline
    assert [w for w in wanted if w.replace(thin, " ") not in text] == []
    for scene in result.scenes:
        assert f"{scene.tokens} tokens of 64 patches" in re.sub(r"\s+", " ", text)
    for choice in result.kernels:
        assert choice.operation in text and choice.reason in text
    assert text.count("✓ right") == sum(s.correct for s in result.scenes)
    assert text.count("✗ wrong") == sum(not s.correct for s in result.scenes) > 0


def test_the_language_stage_is_on_the_page_where_there_was_one(result: QuickstartResult) -> None:
    stage = plausible_language()
    outline = Outline(render_report(replace(result, language=stage)))
    assert outline.open == []
    text = outline.text.replace("\u202f", " ")
    wanted = ["87.2 %", "83.1 %", "71.3 %", "35.4 %", "96.5 %", "20.4 tokens an image", "1 010 203", "guidance 2.0"]
    wanted += [stage.model_path, "reads and writes images and text", "Answers: exists", "Language model"]
    assert [words for words in wanted if words not in text] == []
    right = sum(one.caption == one.said for one in stage.spoken)
    assert 0 < right < len(stage.spoken)
    asked = [answer for one in stage.spoken for answer in one.answers]
    read = sum(one.prompt == one.read for one in stage.requests) + sum(scene.correct for scene in result.scenes)
    read += sum(one.read == one.wanted for one in stage.changes)
    assert text.count("✓ right") == right + sum(answer.correct for answer in asked) + read
    assert all(one.prompt in text for one in stage.changes) and "61.7 %" in text and "64.8 %" in text
    assert "(true: yes )" in text and "(true: 2 )" not in text
    pictures = len(outline.all("img")) - 2 * (len(result.scenes) + len(result.photos))
    assert pictures == len(stage.spoken) + len(stage.changes) and all(a.get("alt") for a in outline.all("img"))
    most = len(result.probe) + len(stage.images) + len(stage.edits)
    assert sum("encoder" == a.get("class") for a in outline.all("i")) == most
    anchors = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(anchors) == len(set(anchors)) and {a["href"] for a in outline.all("a")} <= {
        f"#{name}" for name in anchors
    }


def test_without_a_language_stage_the_page_does_not_speak_of_one(outline: Outline) -> None:
    assert "dynamic visual tokenizer, trained" in outline.text and "What it says" not in outline.text
    fixed = Outline(render_report(replace(plausible_result(scenes=1, photos=0), length="fixed"))).text
    assert "A fixed-length visual tokenizer" in fixed and "the same number of patches of every image" in fixed


def test_missing_parts_of_the_language_stage_are_said_not_raised() -> None:
    bare = LanguageResult(0, 0, {}, math.nan, {}, {}, {})
    outline = Outline(render_report(QuickstartResult("lavit quickstart", 1.5, "CPU", 1, 0, language=bare)))
    assert outline.open == [] and outline.all("img") == []
    assert len([a for a in outline.all("p") if a.get("class") == "empty"]) == 12
    assert "nan" not in outline.text.lower()


def test_missing_parts_are_said_not_raised() -> None:
    outline = Outline(render_report(QuickstartResult("lavit quickstart", 1.5, "CPU", 1, 0)))
    assert outline.open == [] and outline.all("svg") == [] and outline.all("img") == []
    assert len([a for a in outline.all("p") if a.get("class") == "empty"]) == 9
    assert "nan" not in outline.text.lower()


def test_degenerate_numbers_do_not_break_the_page() -> None:
    result = plausible_result(scenes=1, photos=0)
    result.scenes[0].cosine = math.nan
    result.cosines, result.content, result.code_counts = [math.nan, 0.5], {1: [3], 2: []}, [0, 0, 0]
    result.history = [{"step": 0, "loss": math.inf, "phase": "one"}]
    result.probe = [ProbeRow("nothing", math.nan, 1.0, 0.0)]
    result.stages = [Stage("nothing", 0.0)]
    outline = Outline(render_report(result))
    assert outline.open == [] and "nan" not in outline.text.lower()


def test_the_page_does_not_claim_what_the_run_did_not_show() -> None:
    result = plausible_result(scenes=1, photos=0)
    assert "More objects get more tokens" in Outline(render_report(result)).text
    result.content = {1: [30, 31], 2: [19], 3: [11]}
    text = Outline(render_report(result)).text
    assert "does not rise with every object: 30.5 for 1, 19.0 for 2, 11.0 for 3; correlation \u22120." in text
    result.content = {1: [4, 4], 2: [4]}
    assert "4.0 for 1, 4.0 for 2. A dot" in Outline(render_report(result)).text


def test_text_from_outside_stays_text(result: QuickstartResult) -> None:
    """In every string of a result: no element, no attribute, no word outside a <bdi> comes of it."""
    whole = replace(result, language=plausible_language(), pixels=plausible_pixels())
    page = render_report(hostile(whole))
    plain, evil = Outline(render_report(whole)), Outline(page)
    assert [(tag, list(attrs)) for tag, attrs in evil.tags] == [(tag, list(attrs)) for tag, attrs in plain.tags]
    assert evil.open == [] and page.count("</style>") == page.count("</title>") == 1
    shown = [isolated for words, isolated in zip(evil.words, evil.isolated, strict=True) if "alert(1)" in words]
    assert len(shown) > 150 and all(shown)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00]", page) and "49" not in evil.text.replace("49 ", "")
    held = {key for _, attrs in evil.tags for key, text in attrs.items() if "alert(1)" in str(text)}
    assert held == {"alt"}


def test_names_of_files_that_are_no_unicode_can_be_written(tmp_path) -> None:
    result = plausible_result(scenes=0, photos=1)
    result.photos[0].name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    write_report(result, tmp_path / "report.html")
    assert "caf\ufffd.jpg" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("photograph", "kind"), [(False, "png"), (True, "jpeg")])
def test_images_travel_inside_the_page(photograph: bool, kind: str) -> None:
    image = Image.new("RGB", (12, 7), (200, 30, 40))
    source, width, height = embed(image, photograph)
    start = f"data:image/{kind};base64,"
    assert source.startswith(start) and (width, height) == image.size
    with Image.open(io.BytesIO(base64.b64decode(source.removeprefix(start)))) as back:
        pixel = back.convert("RGB").getpixel((5, 3))
        assert back.size == image.size and isinstance(pixel, tuple)
        assert max(abs(a - b) for a, b in zip(pixel, (200, 30, 40), strict=True)) <= (3 if photograph else 0)


def test_templates_travel_with_the_package(tmp_path) -> None:
    pytest.importorskip("setuptools")
    root = Path(__file__).parents[2]
    build = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path), "build_py", "-d", str(tmp_path)]
    subprocess.run(build, cwd=root, check=True, capture_output=True, env={**os.environ, "LAVIT_BUILD": "0"})
    source = root / "lavit/report/templates"
    assert {path.name for path in source.iterdir()} == {p.name for p in (tmp_path / "lavit/report/templates").iterdir()}


def test_every_colour_of_a_chart_is_one_of_the_page_in_light_and_dark(page: str) -> None:
    style = page[page.index("<style>") : page.index("</style>")]
    for name in plots.VARIABLES.values():
        assert style.count(f"--{name}:") >= (1 if name in ("wash",) else 2)


def test_differing_words_are_marked() -> None:
    assert differing("a red circle", "a blue circle") == "a <mark>red</mark> circle"
    assert differing("a <b>", "a <b>") == "a &lt;b&gt;"
    assert differing("", "a red circle") == ""


def test_phases_meet_where_they_switch() -> None:
    rows = [{"step": s, "phase": p} for s, p in [(0, "a"), (5, "a"), (10, "b"), (15, "b"), (20, "a")]]
    assert phases(rows) == [("a", 0, 10), ("b", 10, 20), ("a", 20, 20)]
    assert phases([{"step": 0}]) == [] == phases([])


def test_perplexity_of_even_use_is_the_number_of_used_codes() -> None:
    assert perplexity([5, 5, 5, 0]) == pytest.approx(3, rel=1e-12)
    assert perplexity([7, 0]) == pytest.approx(1, rel=1e-12)
    assert math.isnan(perplexity([0]))


def test_mean_tokens_are_in_order_and_skip_empty_groups() -> None:
    assert mean_tokens({3: [30], 1: [10, 12], 2: []}) == {1: 11.0, 3: 30.0}


def test_page_is_written_whole_or_not_at_all(tmp_path, result: QuickstartResult, page: str) -> None:
    path = tmp_path / "report.html"
    write_report(result, path)
    assert path.read_text(encoding="utf-8") == page
    broken = plausible_result(scenes=1, photos=0)
    broken.scenes[0].keep = broken.scenes[0].keep[:-1]
    with pytest.raises(ValueError, match="keep"):
        write_report(broken, path)
    assert path.read_text(encoding="utf-8") == page and [p.name for p in tmp_path.iterdir()] == ["report.html"]
