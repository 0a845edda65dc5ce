"""From tokens to pixels: the conditional U-Net, what it is conditioned on, and the pipeline around them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {
    "ASPECT_RATIOS": "lavit.pixels.sizes",
    "Condition": "lavit.pixels.conditioner",
    "LaVITPixelOutput": "lavit.pixels.pipeline",
    "LaVITPixelPipeline": "lavit.pixels.pipeline",
    "NegativeEmbeds": "lavit.pixels.conditioner",
    "PixelConditioner": "lavit.pixels.conditioner",
    "SmallUNet": "lavit.pixels.unet",
    "nearest_size": "lavit.pixels.sizes",
    "small_unet": "lavit.pixels.unet",
}

__all__ = [
    "ASPECT_RATIOS",
    "Condition",
    "LaVITPixelOutput",
    "LaVITPixelPipeline",
    "NegativeEmbeds",
    "PixelConditioner",
    "SmallUNet",
    "nearest_size",
    "small_unet",
]

if TYPE_CHECKING:
    from lavit.pixels.conditioner import Condition as Condition
    from lavit.pixels.conditioner import NegativeEmbeds as NegativeEmbeds
    from lavit.pixels.conditioner import PixelConditioner as PixelConditioner
    from lavit.pixels.pipeline import LaVITPixelOutput as LaVITPixelOutput
    from lavit.pixels.pipeline import LaVITPixelPipeline as LaVITPixelPipeline
    from lavit.pixels.sizes import ASPECT_RATIOS as ASPECT_RATIOS
    from lavit.pixels.sizes import nearest_size as nearest_size
    from lavit.pixels.unet import SmallUNet as SmallUNet
    from lavit.pixels.unet import small_unet as small_unet


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'lavit.pixels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
