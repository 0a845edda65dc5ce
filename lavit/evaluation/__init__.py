"""How good tokens, captions, answers and images are: probes, statistics, the usual metrics, and chance beside each."""

from importlib import import_module
from typing import Any

import lazy_loader

# Loaded on first use; what there is stands in __init__.pyi, for type checkers too.
_load, _, __all__ = lazy_loader.attach_stub(__name__, __file__)

_OF_SHAPES = {
    "Drawn": "lavit.shapes.judge",
    "SceneReader": "lavit.shapes.judge",
    "CellProbe": "lavit.shapes.probe",
    "ProbeScore": "lavit.shapes.probe",
    "chance": "lavit.shapes.probe",
    "train_probe": "lavit.shapes.probe",
    "SceneReport": "lavit.shapes.scores",
    "SceneScore": "lavit.shapes.scores",
    "score_scenes": "lavit.shapes.scores",
}
__all__ = sorted([*__all__, *_OF_SHAPES])


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    return getattr(import_module(_OF_SHAPES[name]), name) if name in _OF_SHAPES else _load(name)
