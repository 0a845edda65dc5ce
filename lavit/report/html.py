"""Pages as text: the templates' environment, pictures within the page, and words that differ."""

from __future__ import annotations

import base64
import io
import math
from difflib import SequenceMatcher
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from lavit.report import format, plots
from lavit.report.result import Photo, Scene, mean_of, perplexity
from lavit.report.token_map import draw_token_map


def differing(words: str, other: str) -> Markup:
    """``words`` as HTML, with those marked that ``other`` does not have at that point."""
    a, b = format.plain(words).split(), format.plain(other).split()
    parts = []
    for kind, start, end, _, _ in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        text = escape(" ".join(a[start:end]))
        if text:
            parts.append(text if kind == "equal" else Markup("<mark>{}</mark>").format(text))
    return Markup(" ").join(parts)


def embed(image: np.ndarray | Image.Image, photograph: bool = False) -> tuple[str, int, int]:
    """The pixels as a URI, width and height: PNG, or JPEG for a photograph (a tenth of the size, no visible loss).
    A PNG stays transparent where the image is."""
    image, file = Image.fromarray(np.asarray(image)), io.BytesIO()
    kind: dict[str, Any] = {"format": "JPEG", "quality": 90, "subsampling": 0} if photograph else {"format": "PNG"}
    mode = "RGBA" if image.mode == "RGBA" and not photograph else "RGB"
    image.convert(mode).save(file, optimize=True, **kind)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f"data:image/{kind['format'].lower()};base64,{data}", image.width, image.height


@cache
def environment() -> Environment:
    """Whatever a template shows is escaped, and changes nothing of what stands around it."""
    made = Environment(
        loader=PackageLoader("lavit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup | int | float) else format.plain(str(value)),
    )
    filters = (format.integer, format.decimal, format.percent, format.duration, format.brief, mean_of, perplexity)
    made.filters.update({function.__name__: function for function in filters})
    made.tests["finite"] = math.isfinite
    made.globals.update(differing=differing, embed=embed, plots=plots, token_map=_token_map)
    return made


def _token_map(of: Scene | Photo, grid: tuple[int, int]) -> Image.Image:
    return draw_token_map(Image.fromarray(of.image), of.keep, grid)
