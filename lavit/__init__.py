"""LaVIT: images as a variable number of discrete tokens, for one language model that reads and writes both.

The public names are loaded on first use, so that ``import lavit`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "LaVIT": "lavit.language.model",
    "LaVITConfig": "lavit.language.configuration",
    "LaVITProcessor": "lavit.language.processing",
    "LaVITTokenizerConfig": "lavit.tokenizer.configuration",
    "LaVITTokenizer": "lavit.tokenizer.model",
    "LaVITImageProcessor": "lavit.tokenizer.processing",
    "LaVITPixelPipeline": "lavit.pixels.pipeline",
    "NegativeEmbeds": "lavit.pixels.conditioner",
    "PixelConditioner": "lavit.pixels.conditioner",
    "SmallUNet": "lavit.pixels.unet",
}

# A saved pipeline names its parts as ["lavit", class], and diffusers looks here for the classes by whose methods it
# loads them.
_BASES = {
    "ImageProcessingMixin": "transformers.image_processing_base",
    "ModelMixin": "diffusers",
    "PreTrainedModel": "transformers",
}

__all__ = [
    "LaVIT",
    "LaVITConfig",
    "LaVITImageProcessor",
    "LaVITPixelPipeline",
    "LaVITProcessor",
    "LaVITTokenizer",
    "LaVITTokenizerConfig",
    "NegativeEmbeds",
    "PixelConditioner",
    "SmallUNet",
    "__version__",
    "kernels",
]

if TYPE_CHECKING:
    from lavit import kernels as kernels
    from lavit.language.configuration import LaVITConfig as LaVITConfig
    from lavit.language.model import LaVIT as LaVIT
    from lavit.language.processing import LaVITProcessor as LaVITProcessor
    from lavit.pixels.conditioner import NegativeEmbeds as NegativeEmbeds
    from lavit.pixels.conditioner import PixelConditioner as PixelConditioner
    from lavit.pixels.pipeline import LaVITPixelPipeline as LaVITPixelPipeline
    from lavit.pixels.unet import SmallUNet as SmallUNet
    from lavit.tokenizer.configuration import LaVITTokenizerConfig as LaVITTokenizerConfig
    from lavit.tokenizer.model import LaVITTokenizer as LaVITTokenizer
    from lavit.tokenizer.processing import LaVITImageProcessor as LaVITImageProcessor


def __getattr__(name: str):
    if name == "kernels":
        return import_module("lavit.kernels")
    home = _HOME.get(name) or _BASES.get(name)
    if home is not None:
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'lavit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
