"""Runs as they could have been, never shown as a measurement, and a page as a browser sees it."""

from __future__ import annotations

import math
import re
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from typing import Any

import numpy as np

from lavit.kernels.dispatch import Choice
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
    Stage,
)
from lavit.shapes.world import ShapesWorld

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
    """A run without a language and a pixel stage."""
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
    """Its language stage."""
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


WAYS = {
    "image": {"scene": Rate(0.731, 0.007), "recall": Rate(0.862, 0.0625), "cell": Rate(0.911, 0.5)},
    "text": {"scene": Rate(0.517, 0.007, 0.731), "recall": Rate(0.693, 0.0625, 0.862), "cell": Rate(0.804, 0.5, 0.911)},
}


def plausible_pixels(shown: int = 3) -> PixelsResult:
    """Its pixel stage."""
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


EVIL = """<script>alert(1)</script></style></title><img src=x onerror=alert(1)>"'& {{ 7 * 7 }} \u202e\u2067\x00 """
KEYS = set(  # that the page asks for by name
    "step loss text_loss reconstruction_loss ratio_loss commitment_loss tokens_per_second images_per_second phase "
    "keep_rate codes_used perplexity accuracy exact recall scene cell mean drawn true lavit image text".split()
)


def hostile(value: Any, evil: str = EVIL) -> Any:
    """The value with ``evil`` before every string in it that says something, at any depth."""
    if isinstance(value, str):
        return evil + value if value else value
    if isinstance(value, dict):
        return {key if key in KEYS else hostile(key, evil): hostile(inner, evil) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner, evil) for inner in value]
    if is_dataclass(value):
        return replace(value, **{field.name: hostile(getattr(value, field.name), evil) for field in fields(value)})
    return value


class Outline(HTMLParser):
    """What a browser would make of the page: balanced tags, text, attributes."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.isolated: list[bool] = []  # for each of the words whether their direction is kept to themselves
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open  # elsewhere a browser takes no notice of the slash
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)
            self.isolated.append("bdi" in self.open)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag == name]
