"""Sizes of the tokenizer's presets, for what is slow to import nothing: the configuration itself needs transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

SIZES = {"small": (32, 4), "small-64": (64, 8), "small-96": (96, 8), "small-128": (128, 8), "lavit-g": (224, 14)}
"""image_size and patch_size of `lavit.tokenizer.configuration.PRESETS`, in pixels."""


def sizes_told(preset: str, changes: Mapping[str, Any], model: str | None = None, fit: str | None = None) -> str:
    """ "images: 32 x 32 pixels (stretch), 64 patches of 4 x 4"; "" where the sizes are not known.

    changes: to the preset, by name. model: folder of a tokenizer that takes the preset's place, where there is one.
    """
    image, patch = SIZES.get(preset, (None, None))
    found: Mapping[str, Any] = {"image_size": image, "patch_size": patch}
    if model is not None:
        with suppress(OSError, ValueError):
            found = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    image, patch = (changes.get(name, found.get(name)) for name in ("image_size", "patch_size"))
    if not (isinstance(image, int) and isinstance(patch, int) and image > 0 and patch > 0):
        return ""
    how = f" ({fit})" if fit else ""
    return f"images: {image} x {image} pixels{how}, {(image // patch) ** 2} patches of {patch} x {patch}"
