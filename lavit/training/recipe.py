"""Settings of a stage-1 run, and the recipes of the two presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lavit.training import config as configuration
from lavit.training.config import setting
from lavit.training.loop import LoopConfig
from lavit.training.schedule import Anneal, PhaseOrder, ScheduleConfig

RECIPES = Path(__file__).parent / "recipes"
SHAPES = "shapes"


@dataclass
class OptimizerConfig:
    """AdamW; betas and weight decay are BEiT v2's (*derived*)."""

    betas: tuple[float, float] = setting((0.9, 0.99), "AdamW's betas")
    eps: float = setting(1e-8, "AdamW's epsilon")
    weight_decay: float = setting(1e-4, "of matrices; vectors and embeddings have none")


@dataclass
class WarmStartConfig:
    """Teaches the selector in the first steps to like patches that differ from their neighbours (*derived*)."""

    fraction: float = setting(0.0, "fraction of the steps; 0: no warm start")
    weight: float = setting(1.0, "weight of its loss at the first step, from where it falls to 0 in a straight line")


@dataclass
class CacheConfig:
    """The frozen encoder's features, computed once."""

    enabled: bool = setting(False, "compute the features of all images before training")
    folder: str | None = setting(None, "where to keep them; none: in the output folder")
    dtype: Literal["float32", "float16", "bfloat16"] = setting("float32", "precision on the disk")


@dataclass
class TokenizerTrainingConfig:
    """A run of stage 1. The defaults suit the preset "small"; `recipe` gives each preset its own."""

    preset: str = setting("small", "small or lavit-g: sizes of the tokenizer, and the recipe to start from")
    tokenizer: dict[str, Any] = setting(dict, "changes to the preset: tokenizer.num_codes=512")
    model: str | None = setting(None, "tokenizer to go on from (a folder); none: a new one")
    encoder: str | None = setting(None, "pretrained encoder: a tokenizer's or the release's folder, or a file")
    encoder_steps: int = setting(400, "steps that pretrain an encoder on the shapes world where none is given")
    data: str = setting(SHAPES, "folder of images, or shapes: the built-in world")
    scenes: int = setting(20000, "number of different scenes of the shapes world")
    workers: int = setting(2, "threads that read image files")
    output: str | None = setting(None, "folder of the run; none: nothing is written")
    seed: int = setting(0, "of weights, data order and noise")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    tensorboard: bool = setting(True, "write TensorBoard files too, if it is installed")
    order: PhaseOrder = setting("continuous_then_joint", "selector_then_codebook or continuous_then_joint")
    first_phase: float = setting(0.15, "fraction of the steps without quantisation")
    codebook: Literal["kmeans", "keep"] = setting("kmeans", "start of the codebook when quantisation begins")
    vectors_per_code: int = setting(20, "vectors for each code that the k-means start sees")
    noise: Anneal = field(default_factory=lambda: Anneal(1.0, 0.0, 0.6))
    tau: Anneal = field(default_factory=lambda: Anneal(1.0, 0.5, 0.6))
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    @classmethod
    def recipe(cls, preset: str = "small", overrides: dict[str, Any] | None = None) -> TokenizerTrainingConfig:
        """The recipe of a preset with dotted overrides, ``{"loop.steps": 100}``; ``steps`` alone will do."""
        return configuration.load(cls, recipe_file(preset), overrides)


def recipe_file(preset: str, stage: str = "tokenizer") -> Path:
    """The file of a stage's recipe for a preset. ConfigError names those that there are."""
    known = {path.stem.removeprefix(f"{stage}-"): path for path in sorted(RECIPES.glob(f"{stage}-*.yaml"))}
    name = preset.removeprefix("lavit-")
    if name not in known:
        raise configuration.ConfigError(f"preset: expected small or lavit-g, got {preset!r}")
    return known[name]
