"""LaVIT: images as a variable number of discrete tokens, for one language model that reads and writes both.

The public names are loaded on first use, so that ``import lavit`` is quick; they stand in __init__.pyi.
"""

from importlib import import_module
from typing import Any

import lazy_loader

from lavit.compatibility import install

__version__ = "0.1.0"

_load, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]

# A saved pipeline names its parts as ["lavit", class], and diffusers looks here for the classes by whose methods it
# loads them.
_BASES = {
    "ImageProcessingMixin": "transformers.image_processing_base",
    "ModelMixin": "diffusers",
    "PreTrainedModel": "transformers",
}

install()


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in _BASES:
        return getattr(import_module(_BASES[name]), name)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _load(name)
