"""The page of a model and a folder holds what was found, says what is missing, stands alone, survives hostile words."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from described_folder import write_pictures
from plausible import EVIL, Outline

from lavit.evaluation.examination import Examination
from lavit.evaluation.folder_pictures import Asked, Drawn, FolderDrawn, Rebuilt
from lavit.evaluation.folder_tokens import FolderTokens, Seen
from lavit.evaluation.folder_words import Answered, FolderAnswers, FolderCaptions, Said
from lavit.kernels.dispatch import Choice
from lavit.report.extremes import extremes_of
from lavit.report.folder_page import About, nearer, render_folder_report, shot
from lavit.report.training_runs import TrainingRun

ABOUT = About(
    "lavit report model --data scenes",
    {"seed": "7"},
    {"lavit": "0.2.0"},
    [Choice("nearest_code", "cpu", "cpp", "fast")],
    {"tokenizer": 12345},
)
RUN = TrainingRun("runs/one", "Tokenizer", [{"step": s, "loss": 1 / s, "val_loss": 2 / s} for s in (1, 2, 4)])
SECTIONS = "captions answers rebuilt drawn changed".split()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("page") / "images", 4)


def tokens_of(paths, cosine=0.5):
    rng = np.random.default_rng(0)
    seen = [
        Seen(path, np.arange(16) < 3 * i + 1, cosine + 0.1 * i, 0.01, 0.1 * i, 500 + int(rng.integers(90)))
        for i, path in enumerate(paths)
    ]
    return FolderTokens(seen, (4, 4), np.array([9, 4, 0, 1]), [])


def whole(paths, words=""):
    """An examination with everything; ``words`` stand before every text."""
    said = [Said(p, (f"{words}a red circle",), f"{words}a {c} circle", c == "red", 1.0 if c == "red" else 0.5)
            for p, c in zip(paths, ("red", "blue", "red", "green"), strict=True)]  # fmt: skip
    answered = [Answered(p, f"{words}how many?", (f"{words}2",) * 10, f"{words}{n}", float(n == 2), f"{words}count")
                for n, p in enumerate(paths)]  # fmt: skip
    drawn = [Drawn(Asked(f"{words}a circle", p), 4, 0.9, 0, None, paths[0]) for p in paths]
    changed = [Drawn(Asked(f"{words}put it", p, paths[1]), 4, 0.9, 2, 0.8 + 0.2 * i, None) for i, p in enumerate(paths)]
    return Examination(
        Path("scenes"),
        9,
        tokens_of(paths),
        FolderCaptions(said, 0.5, 0.75, 0.25, 0.375, {"CIDEr": 1.25}, []),
        FolderAnswers(answered, 0.25, 0.3, {f"{words}count": (0.25, 0.125, 4), "colour": (0.5, 0.375, 2)}),
        [Rebuilt(p, paths[0], 5, 20.0 + i, 0.5, 12.5) for i, p in enumerate(paths)],
        FolderDrawn(drawn, 40, []),
        FolderDrawn(changed, 12, []),
        {},
        [(f"{words}bad.png", f"{words}is empty")],
    )


@pytest.fixture(scope="module")
def page(paths):
    return render_folder_report(whole(paths), [RUN], ABOUT)


@pytest.fixture(scope="module")
def outline(page):
    return Outline(page)


def text_of(page):
    return " ".join(" ".join(Outline(page).words).replace("\u202f", " ").split())


def test_page_is_well_formed_and_links_lead_to_its_parts(outline):
    assert outline.open == []
    anchors = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(anchors) == len(set(anchors)) and set(SECTIONS) <= set(anchors)
    links = {a["href"] for a in outline.all("a")}
    assert links and links <= {f"#{name}" for name in anchors}
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels[:-1], levels[1:], strict=True))


def test_page_asks_nothing_of_the_network_and_tells_its_pictures(page, outline):
    assert not re.findall(r"https?://|url\(|@import|<script|<iframe", page)
    sources = [str(value) for _, a in outline.tags for key, value in a.items() if key in ("src", "href", "srcset")]
    assert all(value.startswith(("data:", "#")) for value in sources)
    assert all(a.get("alt") for a in outline.all("img"))
    assert all(a.get("role") == "img" and a.get("aria-label") for a in outline.all("svg"))


def test_what_was_found_is_on_the_page_beside_chance(page):
    said = text_of(page)
    for wanted in (
        "4 of 9 pictures",
        "5.5 tokens a picture of 16 patches",  # 1, 4, 7, 10
        "0.650 cosine of rebuilt and true features (another picture's tokens: 0.010)",
        "3 of 4 codes in use",
        "21.5 dB PSNR of pictures drawn again from their tokens (their mean colour alone: 12.5 dB)",
        "50.0 % of captions word for word right (always the same one: 25.0 %)",
        "25.0 % of answers right (the usual answer to each kind of question: 30.0 %)",
        "100.0 % of pictures drawn for a caption have the captioned one among their 10 nearest of 40 (chance 25.0 %)",
        "CIDEr 1.250.",
        "F1 of the words: 0.750, saying always the same 0.375.",
        "At the end 0.25, held out 0.5.",
        "12 345",
        "nearest_code",
        "lavit report model --data scenes",
        "bad.png is empty",
        "place 3 of 12",
    ):
        assert wanted in said, wanted
    assert "No captions:" not in said and "No curves" not in said


def test_what_was_drawn_from_words_stands_first(page, paths):
    order = re.findall(r'<section id="(\w+)"', page)
    assert order[:2] == ["drawn", "changed"] and order.index("maps") < order.index("captions")
    bare = render_folder_report(replace(whole(paths), drawn=None, missing={"drawn": "x"}), [], ABOUT)
    assert re.findall(r'<section id="(\w+)"', bare)[0] == "maps"


def test_differing_words_of_a_caption_are_marked(page):
    assert "<mark>blue</mark>" in page and "<mark>red</mark>" in page


def test_what_is_missing_is_a_sentence_that_says_why(paths):
    found = Examination(Path("scenes"), 4, tokens_of(paths, math.nan), missing={n: f"because of {n}" for n in SECTIONS})
    page = render_folder_report(found, [], ABOUT)
    said = text_of(page)
    assert all(f": because of {name}." in said for name in SECTIONS)
    assert "no training run's" in said and "they have no cosine" in said and "nan" not in said.lower().split()
    assert Outline(page).open == []


def test_hostile_words_change_nothing(paths, page):
    evil = replace(RUN, folder=EVIL, rows=[{"step": s, EVIL: 1.0, "phase": f"{EVIL}{s // 2}"} for s in (1, 2, 4)])
    about = About(EVIL, {EVIL: EVIL}, {"lavit": EVIL}, [Choice(EVIL, EVIL, EVIL, EVIL)], {EVIL: 1})
    hurt = render_folder_report(whole(paths, EVIL), [evil], about)
    outline = Outline(hurt)
    assert outline.open == [] and not outline.all("script")
    assert {tag for tag, _ in outline.tags} <= {tag for tag, _ in Outline(page).tags} | {"ol"}
    assert not any(name.startswith("on") for _, a in outline.tags for name in a)
    assert not set("\u202e\u2067\x00") & set(hurt) and "{{ 7 * 7 }}" in "".join(outline.words)


def test_the_worst_come_first_and_what_is_right_is_no_mistake(paths):
    kinds = {kind.title: kind for kind in extremes_of(whole(paths), 2)}
    tokens = kinds["Features rebuilt from the tokens"]
    assert [item.pictures[0][1] for item in tokens.worst] == paths[:2]
    assert [item.pictures[0][1] for item in tokens.best] == paths[:1:-1] and tokens.wrong is None
    captions = kinds["Captions"]
    assert [item.told for item in captions.worst] == ["F1 0.50"] * 2 and captions.wrong == 2
    assert [item.told for item in captions.best] == ["word for word"] * 2
    assert kinds["Answers"].wrong == 3 and kinds["Answers"].total == 4
    assert [name for name, _ in kinds["Pictures changed"].worst[0].pictures] == ["before", "true"]
    assert [item.score for item in kinds["Pictures rebuilt"].worst] == [20, 21]


def test_changes_count_as_made_where_they_are_nearer_to_what_is_wanted(paths):
    assert nearer(whole(paths).changed) == 0.25  # before: 0.8, 1.0, 1.2, 1.4 against 0.9
    assert math.isnan(nearer(whole(paths).drawn))


def test_small_pictures_keep_their_pixels_and_large_ones_are_shrunk(paths, tmp_path):
    from PIL import Image

    picture, css, photograph = shot(paths[0])
    assert (picture.size, css, photograph) == ((32, 32), "pixels", False)
    Image.new("RGB", (1000, 500)).save(tmp_path / "large.png")
    picture, css, photograph = shot(tmp_path / "large.png")
    assert (picture.size, css, photograph) == ((384, 192), "", True)


