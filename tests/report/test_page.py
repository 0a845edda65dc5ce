"""The report holds every number of a run, stands alone, and survives hostile or missing input."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from lavit.kernels.dispatch import Choice
from lavit.report import (
    Answer,
    LanguageResult,
    Photo,
    ProbeRow,
    QuickstartResult,
    Rate,
    Request,
    Scene,
    Spoken,
    Stage,
    differing,
    mean_tokens,
    perplexity,
    phases,
    render_report,
    write_report,
)

COLOURS = {"red": (210, 48, 44), "green": (52, 168, 83), "blue": (50, 96, 214), "yellow": (240, 196, 25)}
PLACES = ("top left", "top right", "bottom left", "bottom right")


def plausible_scene(rng: np.random.Generator, objects: int) -> Scene:
    """A scene that looks like one of a run: objects on grey, kept patches on them and a few beside."""
    image = (np.full((32, 32, 3), 128) + rng.normal(0, 4, (32, 32, 3))).clip(0, 255).astype(np.uint8)
    keep, names = rng.random((8, 8)) < 0.05, []
    for place in sorted(rng.choice(4, objects, replace=False)):
        colour, shape = rng.choice(list(COLOURS)), rng.choice(["circle", "square", "triangle"])
        cy, cx, r = 8 + 16 * (place // 2) + rng.integers(-2, 3), 8 + 16 * (place % 2) + rng.integers(-2, 3), 5
        yy, xx = np.mgrid[:32, :32] - np.array([cy, cx])[:, None, None]
        inside = {
            "circle": yy**2 + xx**2 <= r * r,
            "square": (abs(yy) <= r - 1) & (abs(xx) <= r - 1),
            "triangle": (abs(yy) <= r) & (2 * abs(xx) <= yy + r),
        }[str(shape)]
        image[inside] = COLOURS[str(colour)]
        keep |= inside.reshape(8, 4, 8, 4).any((1, 3)) & (rng.random((8, 8)) < 0.75)
        names.append(f"a {colour} {shape} {PLACES[place]}")
    caption = " and ".join(names)
    correct = bool(rng.random() < 0.7)
    read_back = caption if correct else caption.replace(caption.split()[1], "green" if "red" in caption else "red", 1)
    return Scene(image, keep.ravel(), caption, int(keep.sum()), float(rng.normal(0.91, 0.02)), read_back, correct)


def plausible_photo(rng: np.random.Generator, name: str, height: int, width: int) -> Photo:
    yy, xx = np.mgrid[:height, :width] / max(height, width)
    image = np.stack([200 - 90 * yy, 150 + 60 * np.sin(9 * xx), 120 + 80 * np.cos(7 * yy * xx)], -1).astype(np.uint8)
    keep = rng.random(64) < 0.4
    return Photo(name, "scikit-image", image, keep, int(keep.sum()), 0.71)


def plausible_result(scenes: int = 6, photos: int = 2, held_out: int = 60, seed: int = 0) -> QuickstartResult:
    """A run as it could have been, drawn from a generator: for tests of the page, never shown as a measurement."""
    rng = np.random.default_rng(seed)
    steps = list(range(0, 601, 10))
    history = [
        {
            "step": s,
            "loss": 0.15
            + 0.9 * math.exp(-s / 120)
            + 0.02 * rng.random()
            + (0.15 * math.exp(-(s - 330) / 40) if s > 330 else 0),
            "reconstruction_loss": 0.1 + 0.7 * math.exp(-s / 120) + 0.02 * rng.random(),
            "ratio_loss": 0.04 * math.exp(-s / 60),
            "commitment_loss": 0.08 * math.exp(-s / 300) if s > 330 else None,
            "keep_rate": 0.33 + 0.17 * math.exp(-s / 100) + 0.01 * rng.random(),
            "codes_used": min(256, 40 + s) if s > 330 else None,
            "perplexity": min(190.0, 20 + s / 3) if s > 330 else None,
            "images_per_second": 1200 + 90 * rng.random(),
            "phase": "warm start" if s < 240 else "without quantisation" if s < 330 else "with quantisation",
        }
        for s in steps
    ]
    content = {n: rng.normal(4 + 8 * n, 2.2, held_out // 3).round().astype(int).tolist() for n in (1, 2, 3)}
    names = ["gumbel_select", "layer_norm", "nearest_code", "pack", "partition", "policy_attention", "varlen_attention"]
    return QuickstartResult(
        command="lavit quickstart --seed 0",
        seconds=291.7,
        device="CPU",
        threads=2,
        seed=0,
        versions={"lavit": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
        model_path="runs/quickstart/model",
        parameters={"encoder": 283_424, "selector": 6_290, "merger": 241_000, "codebook": 4096, "decoder": 262_112},
        stages=[
            Stage("make scenes", 3.2, "20 000 scenes for training, 200 held out"),
            Stage("pre-train the encoder", 41.0, "400 steps; then frozen"),
            Stage("train the tokenizer", 214.3, "600 steps in three phases"),
            Stage("probe", 22.5, "small classifiers on rebuilt features"),
        ],
        encoder_history=[
            {"step": s, "loss": 1.6 * math.exp(-s / 90) + 0.1, "accuracy": 1 - 0.9 * math.exp(-s / 70)}
            for s in range(0, 401, 10)
        ],
        history=history,
        scenes=[plausible_scene(rng, 1 + i % 3) for i in range(scenes)],
        photos=[plausible_photo(rng, f"photo {i}", 200 + 40 * (i % 2), 300) for i in range(photos)],
        content=content,
        code_counts=[int(n) for n in rng.gamma(1.5, 12, 248) + 1] + [0] * 8,
        cosines=rng.beta(40, 4, held_out).tolist(),
        probe=[
            ProbeRow("what stands in a cell", 0.967, 0.988, 0.154),
            ProbeRow("the whole scene", 0.877, 0.953, 0.001),
            ProbeRow("how many objects", 0.985, 0.995, 1 / 3),
        ],
        kernels=[
            Choice(n, "cpu", "reference" if i % 2 else "cpp", "compiled for this machine; not triton: needs a GPU")
            for i, n in enumerate(names)
        ],
    )


def plausible_language(scenes: int = 9, seed: int = 0) -> LanguageResult:
    """A language stage as it could have been; see ``plausible_result``."""
    rng = np.random.default_rng(seed)
    seen = [plausible_scene(rng, 1 + i % 3) for i in range(scenes)]
    asked = [
        Answer("how many objects are there?", "2", "2", True),
        Answer("what colour is the object bottom right?", "green", "green", True),
        Answer("is there a red circle?", "yes", "no", False),
    ]
    return LanguageResult(
        scenes=300,
        questions=1200,
        captions={"exact": Rate(0.872, 0.007), "recall": Rate(0.941, 0.062)},
        readable=0.99,
        answers={"mean": Rate(0.831, 0.354), "count": Rate(0.9, 1 / 3), "exists": Rate(0.761, 0.5)},
        images={"scene": Rate(0.553, 0.007, 0.921), "recall": Rate(0.713, 0.062, 0.965)},
        tokens={"drawn": 20.4, "true": 21.1},
        edits={"scene": Rate(0.617, 0.0083, 0.902), "recall": Rate(0.843, 0.6475, 0.95)},
        parameters={"language model": 1_010_203, "projector": 12_416},
        steps=1000,
        history=[
            {"step": s, "loss": 6 * math.exp(-s / 200) + 1, "text_loss": 1.0, "tokens_per_second": 9000.0}
            for s in range(0, 1001, 50)
        ],
        seconds={"training": 100.0, "judging": 20.0},
        settings={"training": {"lr": 0.002, "mixture": {"caption": 1.0}}, "images": {"guidance": 2.0}},
        spoken=[Spoken(scene.image, scene.caption, scene.read_back, list(asked)) for scene in seen],
        requests=[Request(scene.caption, scene.read_back, 20 + i) for i, scene in enumerate(seen)],
        changes=[
            Request(f"put a red circle {PLACES[i % 4]}", scene.read_back, 20, scene.image, scene.caption)
            for i, scene in enumerate(seen[:3])
        ],
        model_path="runs/quickstart/model",
    )


class Outline(HTMLParser):
    """What a browser would make of the page: balanced tags, text, attributes."""

    VOID = {"meta", "link", "img", "br", "path", "rect", "circle"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag == name]


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
    assert "(true: yes)" in text and "(true: 2)" not in text
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


def test_text_from_outside_stays_text() -> None:
    evil = '<img src=x onerror="alert(1)"> & \'"'
    result = plausible_result(scenes=1, photos=1)
    result.scenes[0].caption = result.scenes[0].read_back = evil
    result.photos[0].name = result.photos[0].source = evil
    result.command = result.device = result.model_path = evil
    result.versions, result.parameters = {evil: evil, "lavit": evil}, {evil: 1}
    result.stages, result.probe = [Stage(evil, 1.0, evil)], [ProbeRow(evil, 0.5, 0.5, 0.5)]
    result.kernels = [Choice(evil, evil, evil, evil)]
    result.history = [{"step": s, "loss": 1.0, "phase": evil + str(s)} for s in range(2)]
    result.language = plausible_language(1)
    result.language.spoken = [Spoken(result.scenes[0].image, evil, evil, [Answer(evil, evil, evil, False)])]
    result.language.requests = [Request(evil, "a red circle", 3)]
    result.language.changes = [Request(evil, evil, 3, result.scenes[0].image, evil)]
    result.language.answers, result.language.parameters = {evil: Rate(0.5, 0.1)}, {evil: 1}
    result.language.settings, result.language.model_path = {evil: {evil: evil}}, evil
    outline = Outline(render_report(result))
    assert outline.open == []
    assert len(outline.all("img")) == 6 and not any("onerror" in a for _, a in outline.tags)
    assert outline.text.count("<img src=x onerror=") >= 10


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
