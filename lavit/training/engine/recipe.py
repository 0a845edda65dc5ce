"""Settings that the recipes of several stages have in common, and where the recipes of presets lie.

Recipes import no torch: `lavit train STAGE --help` shows them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lavit.training.engine import config as configuration
from lavit.training.engine.config import setting

if TYPE_CHECKING:
    from typing_extensions import Self

CONFIG_FILE = "training.yaml"
"""Where a run's settings stand in its folder."""

THREADS = "of torch, where the command trains; none: chosen from the CPUs, or the run's own"


class Recipe:
    """Settings of a run of one stage. The recipes of its presets lie beside the module of the class, in recipes/."""

    def check_sources(self, tokenizer: bool = False) -> None:
        """ValueError where the settings do not say what a run begins with.

        tokenizer: whether the caller has one, so that none need be named."""

    @property
    def on_shapes(self) -> bool:
        """Whether the run learns from the built-in world."""
        return getattr(self, "data", None) == "shapes"

    def about(self) -> str:
        """A line for ``--help`` about what these settings mean; none: ""."""
        return ""

    @classmethod
    def recipe(cls, preset: str = "small", overrides: dict[str, Any] | None = None) -> Self:
        """The recipe of a preset with dotted overrides, ``{"loop.steps": 100}``; ``steps`` alone will do."""
        return cls.read(cls.recipe_file(preset), overrides)

    @classmethod
    def read(cls, path: str | Path, overrides: dict[str, Any] | None = None) -> Self:
        """The recipe in a file, which may say ``extends: small``: the name of a recipe beside it, or of a preset."""
        return configuration.load(cls, path, overrides, cls.recipes())

    @classmethod
    def recipes(cls) -> Path:
        """The folder of the presets' recipes."""
        return Path(str(sys.modules[cls.__module__].__file__)).parent / "recipes"

    @classmethod
    def recipe_file(cls, preset: str) -> Path:
        """The YAML file of a preset. ConfigError names those that there are."""
        folder = cls.recipes()
        known = sorted((path.stem for path in folder.glob("*.yaml")), key=lambda name: (len(name), name))
        if preset not in known:
            wanted = " or ".join(known) if len(known) < 3 else f"one of {', '.join(known)}"
            raise configuration.ConfigError(f"preset: expected {wanted}, got {preset!r}")
        return folder / f"{preset}.yaml"


def check_tokenizer(config: Any, given: bool) -> None:
    """ValueError for a run of a later stage that has neither a model to go on from nor a tokenizer."""
    if config.model is None and config.tokenizer is None and not given:
        raise ValueError("tokenizer: expected the folder that stage 1 left (lavit train tokenizer), got none")


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


@dataclass
class LoopConfig:
    steps: int = setting(600, "optimizer steps of the whole run")
    batch_size: int = setting(64, "images for each process and micro-batch")
    accumulate: int = setting(1, "micro-batches for each optimizer step")
    clip: float = setting(1.0, "largest gradient norm; 0: no clipping")
    precision: Literal["fp32", "bf16"] = setting("fp32", "bf16: autocast; parameters stay float32")
    log_every: int = setting(20, "steps between two rows of metrics")
    checkpoint_every: int = setting(0, "steps between two checkpoints; 0: at the end and when stopped")
    keep_checkpoints: int = setting(3, "newest checkpoints that stay; 0: all")
    max_bad_steps: int = setting(5, "steps in a row with a NaN or Inf loss or gradient that end the run")

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number >= 1, got {getattr(self, name)}")
        for name in ("clip", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)}")


def check_folders(config: Any, *names: str) -> None:
    """FileNotFoundError for a setting that names a folder that is not there."""
    for name in names:
        folder = getattr(config, name)
        if folder is not None and not Path(folder).is_dir():
            raise FileNotFoundError(f"{name}: there is no folder {folder}")
