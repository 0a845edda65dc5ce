"""Settings that the recipes of several stages have in common, and where the recipes of presets lie."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lavit.training.engine import config as configuration
from lavit.training.engine.config import setting

if TYPE_CHECKING:
    from typing_extensions import Self


class Recipe:
    """Settings of a run of one stage. The recipes of its presets lie beside the module of the class, in recipes/."""

    @classmethod
    def recipe(cls, preset: str = "small", overrides: dict[str, Any] | None = None) -> Self:
        """The recipe of a preset with dotted overrides, ``{"loop.steps": 100}``; ``steps`` alone will do."""
        return configuration.load(cls, cls.recipe_file(preset), overrides)

    @classmethod
    def recipe_file(cls, preset: str) -> Path:
        """The YAML file of a preset. ConfigError names those that there are."""
        folder = Path(str(sys.modules[cls.__module__].__file__)).parent / "recipes"
        known = sorted((path.stem for path in folder.glob("*.yaml")), reverse=True)
        if preset not in known:
            wanted = " or ".join(known) if len(known) < 3 else f"one of {', '.join(known)}"
            raise configuration.ConfigError(f"preset: expected {wanted}, got {preset!r}")
        return folder / f"{preset}.yaml"


@dataclass
class OptimizerConfig:
    """AdamW; betas and weight decay are BEiT v2's (*derived*)."""

    betas: tuple[float, float] = setting((0.9, 0.99), "AdamW's betas")
    eps: float = setting(1e-8, "AdamW's epsilon")
    weight_decay: float = setting(1e-4, "of matrices; vectors and embeddings have none")


@dataclass
class CacheConfig:
    """The frozen encoder's features, computed once."""

    enabled: bool = setting(False, "compute the features of all images before training")
    folder: str | None = setting(None, "where to keep them; none: in the output folder")
    dtype: Literal["float32", "float16", "bfloat16"] = setting("float32", "precision on the disk")
