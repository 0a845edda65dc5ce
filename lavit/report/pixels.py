"""What the report shows of the pixel stage: images made from words and from images, and how often they are right."""

from __future__ import annotations

import math
from html import escape

import numpy as np
from PIL import Image

from lavit.page import image_tag, integer, percent, section
from lavit.report.parts import Bar, Curve, bars, curves, differing, empty, verdict
from lavit.report.result import Painting, PixelsResult, Rate

_CURVES: tuple[Curve, ...] = (
    ("loss", "Loss", "loss", "Squared error of what the U-Net predicts."),
    ("images_per_second", "Speed", "images/s", "Throughput of the training loop."),
)
_FIGURES = (("scene", "every cell right"), ("recall", "objects there"), ("cell", "cells right"))


def tiles(result: PixelsResult) -> list[tuple[str, str, str]]:
    """The number for the page's head: of images asked for in words, or else of those made again."""
    way = "text" if "text" in result.ways else "image"
    rate = result.ways.get(way, {}).get("recall")
    if rate is None:
        return []
    what = "asked for are in the images painted for captions" if way == "text" else "are in the images painted again"
    most = "" if math.isnan(rate.ceiling) else f"images painted again {percent(rate.ceiling)}, "
    return [("paintings", percent(rate.model), f"of the objects {what}; {most}chance {percent(rate.chance)}")]


def sections(result: PixelsResult) -> list[str]:
    return [_paintings(result), _rates(result)]


def learning(result: PixelsResult) -> str:
    """The learning curves; empty where the run kept none."""
    found = curves(result.history, _CURVES)
    return f'<h3 class="group">U-Net</h3>{found}' if found else ""


def _paintings(result: PixelsResult) -> str:
    told = {
        "image": "from the scene's own tokens (image)",
        "text": "from tokens that the language model writes for the caption (text)",
        "image and text": "from those that it writes for the scene and words for one change of it (image and text)",
    }
    lead = (
        f"Held-out scenes painted by the U-Net: {', '.join(told.get(way, way) for way in result.ways)}. Below each is "
        "what a program reads from the pixels by comparing every cell with all that the world can draw."
    )
    title = "What it paints"
    if not result.paintings:
        return section("paintings", title, lead, empty("This run painted no held-out scene."))
    cards = "".join(map(_card, result.paintings))
    return section("paintings", title, lead, f'<div class="cards">{cards}</div>')


def _card(painting: Painting) -> str:
    shown = [_picture("true", painting.image, f"Scene: {painting.caption}", escape(painting.caption))]
    for way, image in painting.images.items():
        read, true = painting.read[way], painting.true(way)
        said = f"{differing(read, true)} {verdict(read == true)}"
        if way in painting.words:
            said = f"<em>{escape(painting.words[way])}:</em> {said}"
        shown.append(_picture(way, image, f"Painted from {way}: {read}", said))
    return f'<figure class="card scene">{"".join(shown)}</figure>'


def _picture(name: str, image: np.ndarray, alt: str, words: str) -> str:
    tag = image_tag(Image.fromarray(image), alt, "pixels")
    return f'<div class="pair">{tag}<dl><dt>{escape(name)}</dt><dd class="read">{words}</dd></dl></div>'


def _rates(result: PixelsResult) -> str:
    lead = (
        f"On {integer(result.scenes)} held-out scenes, read from the pixels by the program. Images painted again from "
        "the true images' own tokens show about what the others can reach; chance is the best of what can be painted "
        "without reading the words. A cell that is like nothing of the world counts as wrong"
    )
    unclear = [f"{percent(share)} from {escape(way)}" for way, share in result.unclear.items()]
    lead += f" ({', '.join(unclear)})." if unclear else "."
    groups = [
        (f"Painted from {way}: {what}", _bars(rates[figure]))
        for way, rates in result.ways.items()
        for figure, what in _FIGURES
        if figure in rates
    ]
    title = "How often the paintings are right"
    if not groups:
        return section("painted", title, lead, empty("This run judged no painting."))
    return section("painted", title, lead, bars(groups, ("what", "of", "right"), "Rates of the paintings"))


def _bars(rate: Rate) -> list[Bar]:
    most = [] if math.isnan(rate.ceiling) else [("painted again", "encoder", rate.ceiling)]
    return [("painted", "tokens", rate.model), *most, ("chance", "chance", rate.chance)]
