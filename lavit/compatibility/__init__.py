"""Paths of modules before they were regrouped: they still import, with one DeprecationWarning that names the new one.

A module that became a package of the same name (`lavit.training.tokenizer`) forwards its old names by `forward`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "lavit.charts": ("lavit.report.plots",),
    "lavit.commands.drawing": ("lavit.commands.pixel_options", "lavit.commands.outputs", "lavit.commands.options"),
    "lavit.commands.folders": ("lavit.commands.model_folders",),
    "lavit.commands.inputs": ("lavit.commands.image_inputs", "lavit.commands.outputs", "lavit.commands.options"),
    "lavit.data.captioned": ("lavit.data.captioned_folder",),
    "lavit.data.edits": ("lavit.shapes.edits",),
    "lavit.data.folder": ("lavit.data.image_folder",),
    "lavit.data.questions": ("lavit.shapes.questions",),
    "lavit.data.shapes": ("lavit.shapes.world",),
    "lavit.data.shapes_language": ("lavit.shapes.sequences", "lavit.data.sequences"),
    "lavit.evaluation.drawn": ("lavit.shapes.judge",),
    "lavit.evaluation.language": ("lavit.evaluation.tasks",),
    "lavit.evaluation.probe": ("lavit.shapes.probe",),
    "lavit.evaluation.scenes": ("lavit.shapes.scores",),
    "lavit.evaluation.statistics": ("lavit.evaluation.token_statistics",),
    "lavit.figure": ("lavit.report.figure",),
    "lavit.files": ("lavit.data.atomic_write",),
    "lavit.hub": ("lavit.released.tokenizer", "lavit.released.language", "lavit.released.files"),
    "lavit.hub_pixels": ("lavit.released.pixels",),
    "lavit.language.cutting": ("lavit.language.postprocessing",),
    "lavit.language.parameters": ("lavit.training.language.objective",),
    "lavit.language.prompts": ("lavit.language.generation_inputs",),
    "lavit.language.reading": ("lavit.language.prompt_embedding",),
    "lavit.language.text": ("lavit.language.text_tokenizer",),
    "lavit.language.understanding": ("lavit.language.continuous_features",),
    "lavit.page": ("lavit.report.format", "lavit.report.page"),
    "lavit.photographs": ("lavit.data.photographs",),
    "lavit.pixels.fitting": ("lavit.pixels.validation",),
    "lavit.pixels.reading": ("lavit.pixels.inputs",),
    "lavit.pixels.sizes": ("lavit.pixels.image_sizes",),
    "lavit.pixels.strict": ("lavit.pixels.pretrained",),
    "lavit.tokenizer.norm": ("lavit.tokenizer.layers",),
    "lavit.tokenizer.position": ("lavit.tokenizer.position_init",),
    "lavit.tokenizer.strict": ("lavit.tokenizer.pretrained",),
    "lavit.tokenmap": ("lavit.report.token_map",),
    "lavit.training.checkpoint": ("lavit.training.engine.checkpoint",),
    "lavit.training.config": ("lavit.training.engine.config",),
    "lavit.training.distributed": ("lavit.training.engine.distributed",),
    "lavit.training.features": ("lavit.training.engine.feature_cache", "lavit.tokenizer.processing"),
    "lavit.training.language_data": ("lavit.training.language.data",),
    "lavit.training.language_recipe": ("lavit.training.language.recipe",),
    "lavit.training.loop": ("lavit.training.engine.loop",),
    "lavit.training.metrics": ("lavit.training.engine.metrics",),
    "lavit.training.pixels_data": ("lavit.training.pixels.data", "lavit.training.pixels.buckets"),
    "lavit.training.pixels_objective": ("lavit.training.pixels.objective",),
    "lavit.training.pixels_recipe": ("lavit.training.pixels.recipe",),
    "lavit.training.recipe": ("lavit.training.tokenizer.recipe", "lavit.training.engine.recipe"),
    "lavit.training.runs": ("lavit.training.engine.stage",),
    "lavit.training.schedule": ("lavit.training.engine.schedule",),
    "lavit.training.stage1": ("lavit.training.tokenizer.objective", "lavit.training.tokenizer.initialization"),
}
"""Old module: where its names are now, the first of them first."""

RENAMED = {
    ("lavit.training.recipe", "SHAPES"): "SHAPES_WORLD",
    ("lavit.training.runs", "save_whole"): "save_model",
}
"""Names that are another one in their new home."""


def forward(old: str, homes: Sequence[str], warn: bool = True) -> Callable[[str], Any]:
    """A ``__getattr__`` that finds old names in their new homes. The first that is found warns, if asked to."""
    told = not warn

    def find(name: str) -> Any:
        nonlocal told
        if name == "__all__" and old in MOVED:
            return [name for home in homes for name in vars(import_module(home)) if not name.startswith("_")]
        # A module of the package itself is asked for here before it is imported: it is no old name.
        private = name.startswith("__") or (old not in MOVED and find_spec(f"{old}.{name}") is not None)
        for home in homes if not private else ():
            value = getattr(import_module(home), RENAMED.get((old, name), name), None)
            if value is not None:
                if not told:
                    told = True
                    _warn(f"{old}.{name}", [home])
                return value
        raise AttributeError(f"module {old!r} has no attribute {name!r}; its parts are now in {', '.join(homes)}")

    return find


def install() -> None:
    """Lets the import system find old paths; called once, by ``import lavit``."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def _warn(old: str, homes: Sequence[str]) -> None:
    # The frames of the import system do not count: the warning names the line that has the old path.
    warnings.warn(f"{old} is now in {' and '.join(homes)}", DeprecationWarning, stacklevel=3)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Loader()) if fullname in MOVED else None


class _Loader(Loader):
    def exec_module(self, module: ModuleType) -> None:
        homes = MOVED[module.__name__]
        _warn(module.__name__, homes)
        module.__doc__ = f"Moved to {' and '.join(homes)}."
        module.__getattr__ = forward(module.__name__, homes, warn=False)  # type: ignore[method-assign]
