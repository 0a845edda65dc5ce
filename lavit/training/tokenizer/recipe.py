"""Settings of a stage-1 run, and the recipes of the presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lavit.shapes.world import SHAPES_WORLD
from lavit.tokenizer.encoder_names import is_external
from lavit.tokenizer.preset_sizes import sizes_told
from lavit.training.engine.config import setting
from lavit.training.engine.recipe import THREADS, CacheConfig, LoopConfig, OptimizerConfig, Recipe
from lavit.training.engine.schedule import Anneal, PhaseOrder, ScheduleConfig
from lavit.training.engine.validation_settings import FOLDER, IMAGES, SHARE, check_validation


@dataclass
class WarmStartConfig:
    """Teaches the selector in the first steps to like patches that differ from their neighbours (*derived*)."""

    fraction: float = setting(0.0, "fraction of the steps; 0: no warm start")
    weight: float = setting(1.0, "weight of its loss at the first step, from where it falls to 0 in a straight line")
    relative: float = setting(0.0, "contrast counts over the image's own to this power; 1: pale images count alike")

    def __post_init__(self) -> None:
        if not 0 <= self.relative <= 1:
            raise ValueError(f"relative: expected a number in [0, 1], got {self.relative}")


@dataclass
class TokenizerTrainingConfig(Recipe):
    """A run of stage 1. The defaults suit the preset "small"; `recipe` gives each preset its own."""

    preset: str = setting("small", "small, small-64, small-96, small-128 (by image size) or lavit-g: sizes, and recipe")
    tokenizer: dict[str, Any] = setting(dict, "changes to the preset: tokenizer.num_codes=512")
    model: str | None = setting(None, "tokenizer to go on from (a folder); none: a new one")
    encoder: str | None = setting(
        None, "frozen encoder: folder or file (train encoder's, a tokenizer's, the release's), timm:NAME[@FILE] or "
        "transformers:FOLDER_OR_NAME"
    )
    encoder_steps: int | None = setting(
        None, "steps that train one on the data where none is given; none: 400 on shapes, on a folder as train encoder"
    )
    standardize: Literal["place", "image"] = setting(
        "place",
        "a new tokenizer brings each channel of the features to mean 0 and deviation 1: at every place by itself, or "
        "over all of the image",
    )
    data: str = setting(SHAPES_WORLD, "folder of images, or shapes: the built-in world")
    fit: Literal["stretch", "crop", "pad"] | None = setting(
        None, "how images become squares: stretch, crop the middle, pad with white; none: as --model does, or stretch"
    )
    scenes: int = setting(20000, "number of different scenes of the shapes world")
    validation: str | None = setting(None, FOLDER)
    validation_share: float = setting(0.0, SHARE)
    validation_images: int = setting(1024, IMAGES)
    workers: int = setting(2, "threads that read image files")
    output: str | None = setting(None, "folder of the run; none: nothing is written")
    seed: int = setting(0, "of weights, data order and noise")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    threads: int | None = setting(None, THREADS)
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

    def __post_init__(self) -> None:
        check_validation(self, SHAPES_WORLD)

    def about(self) -> str:
        if is_external(self.encoder):
            return ""  # its sizes are read from the model
        fit = self.fit or ("stretch" if self.model is None else None)
        return sizes_told(self.preset, self.tokenizer, self.model, fit)
