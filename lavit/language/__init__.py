"""The language model that reads and writes images and text."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {
    "LaVIT": "lavit.language.model",
    "LaVITConfig": "lavit.language.configuration",
    "LaVITOutput": "lavit.language.model",
    "LaVITProcessor": "lavit.language.processing",
    "SamplingSettings": "lavit.language.guidance",
    "Vocabulary": "lavit.language.vocabulary",
    "linear_cross_entropy": "lavit.language.loss",
}

__all__ = [
    "LaVIT",
    "LaVITConfig",
    "LaVITOutput",
    "LaVITProcessor",
    "SamplingSettings",
    "Vocabulary",
    "linear_cross_entropy",
]

if TYPE_CHECKING:
    from lavit.language.configuration import LaVITConfig as LaVITConfig
    from lavit.language.guidance import SamplingSettings as SamplingSettings
    from lavit.language.loss import linear_cross_entropy as linear_cross_entropy
    from lavit.language.model import LaVIT as LaVIT
    from lavit.language.model import LaVITOutput as LaVITOutput
    from lavit.language.processing import LaVITProcessor as LaVITProcessor
    from lavit.language.vocabulary import Vocabulary as Vocabulary


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'lavit.language' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
