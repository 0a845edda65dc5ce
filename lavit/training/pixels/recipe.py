"""Settings of a stage-3 run, and the recipes of the presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lavit.shapes.world import SHAPES_WORLD
from lavit.training.engine.config import setting
from lavit.training.engine.recipe import THREADS, CacheConfig, LoopConfig, OptimizerConfig, Recipe, check_tokenizer
from lavit.training.engine.schedule import ScheduleConfig
from lavit.training.engine.validation_settings import FOLDER, IMAGES, SHARE, check_validation

PIXEL_PRESETS = ("small", "lowres", "highres")
BASE_FILES = ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")


@dataclass
class PixelsTrainingConfig(Recipe):
    """A run of stage 3. The defaults suit the preset "small"; `recipe` gives each preset its own."""

    preset: str = setting("small", "small, lowres (an SD 1.5 U-Net) or highres (an SDXL U-Net)")
    tokenizer: str | None = setting(None, "folder of the visual tokenizer that stage 1 left")
    base: str | None = setting(None, "folder with unet, vae and scheduler to start from; small has none")
    model: str | None = setting(None, "pixel pipeline to go on from (a folder), instead of the two")
    unet: dict[str, Any] = setting(dict, "changes to the small preset's U-Net: unet.channels=[32,64]")
    scheduler: dict[str, Any] = setting(dict, "changes to the scheduler: scheduler.num_train_timesteps=500")
    prediction: Literal["epsilon", "v_prediction", "sample"] | None = setting(None, "none: as the scheduler has it")
    drop: float = setting(0.1, "share of the images whose condition is dropped (derived)")
    min_snr_gamma: float | None = setting(None, "gamma of the min-SNR weighting, such as 5; none: no weighting")
    ema: float = setting(0.9999, "how much the saved averages keep of themselves in a step; 0: no averages")
    gradient_checkpointing: bool = setting(False, "less memory, a third more work")
    data: str = setting(SHAPES_WORLD, "shapes: the built-in world; or a folder of images")
    scenes: int = setting(8192, "number of different scenes of the shapes world")
    size: int | None = setting(None, "side of the images in pixels; none: what the U-Net was made for")
    buckets: bool = setting(False, "seven aspect ratios of the same area, instead of squares")
    validation: str | None = setting(None, FOLDER)
    validation_share: float = setting(0.0, SHARE)
    validation_images: int = setting(1024, IMAGES)
    workers: int = setting(2, "threads that read image files")
    output: str | None = setting(None, "folder of the run; none: nothing is written")
    seed: int = setting(0, "of weights, data order and noise")
    draw_steps: int | None = setting(None, "denoising steps of the saved pipeline; none: as the release's")
    draw_guidance: float | None = setting(None, "guidance of the saved pipeline; none: as the release's")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    threads: int | None = setting(None, THREADS)
    tensorboard: bool = setting(True, "write TensorBoard files too, if it is installed")
    cache: CacheConfig = field(default_factory=CacheConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        if self.preset not in PIXEL_PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PIXEL_PRESETS)}, got {self.preset!r}")
        for name in ("drop", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a share in [0, 1), got {getattr(self, name)}")
        if self.min_snr_gamma is not None and not self.min_snr_gamma > 0:
            raise ValueError(f"min_snr_gamma: expected a number above 0, got {self.min_snr_gamma}")
        if self.model is not None and (self.tokenizer is not None or self.base is not None):
            raise ValueError("model: expected no tokenizer and no base beside it")
        if self.preset == "small" and self.base is not None:
            raise ValueError("base: expected none for the preset small; lowres and highres start from one")
        if self.unet and (self.preset != "small" or self.model is not None):
            raise ValueError("unet: expected no changes to a U-Net that is loaded")
        for name in ("size", "buckets"):
            if self.data == SHAPES_WORLD and getattr(self, name):
                raise ValueError(f"{name}: expected none with --data shapes, got {getattr(self, name)}")
        check_validation(self, SHAPES_WORLD)

    def check_sources(self, tokenizer: bool = False) -> None:
        check_tokenizer(self, tokenizer)
        if self.preset != "small" and self.model is None and self.base is None:
            raise ValueError(f"base: the preset {self.preset} starts from a folder with {', '.join(BASE_FILES)}")
