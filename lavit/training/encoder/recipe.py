"""Settings of a training of an encoder, and the recipes of the presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lavit.shapes.world import SHAPES_WORLD
from lavit.tokenizer.preset_sizes import sizes_told
from lavit.training.engine.config import setting
from lavit.training.engine.recipe import THREADS, LoopConfig, OptimizerConfig, Recipe
from lavit.training.engine.schedule import ScheduleConfig
from lavit.training.engine.validation_settings import FOLDER, IMAGES, SHARE, check_validation


@dataclass
class WeightsConfig:
    """Of the parts of the loss (*derived*)."""

    pixels: float = setting(5.0, "each patch that is seen, drawn again from its own feature")
    masked: float = setting(2.0, "each patch that is not seen, from the features of the others")
    contrastive: float = setting(1.0, "the image's own caption among those of the batch, and the other way round")


@dataclass
class TextConfig:
    """What reads captions, and is thrown away at the end."""

    vocabulary: int = setting(512, "most ids of the text tokenizer that is trained on the captions")
    length: int = setting(32, "ids of a caption that are read")
    width: int = setting(128, "of its one block, and of the space in which images and captions are compared")


@dataclass
class EncoderTrainingConfig(Recipe):
    """A training of an encoder. The defaults suit the preset "small"; `recipe` gives each preset its own."""

    preset: str = setting("small", "small, small-64, small-96 or small-128 (by image size): sizes, and recipe")
    tokenizer: dict[str, Any] = setting(dict, "changes to the preset: tokenizer.encoder_depth=6")
    model: str | None = setting(None, "encoder to go on from: a folder of this command or of stage 1")
    data: str = setting(SHAPES_WORLD, "folder of images, maybe with captions.json, or shapes: the built-in world")
    fit: Literal["stretch", "crop", "pad"] | None = setting(
        None, "how images become squares: stretch, crop the middle, pad with white; none: as --model does, or stretch"
    )
    scenes: int = setting(20000, "number of different scenes of the shapes world")
    validation: str | None = setting(None, FOLDER)
    validation_share: float = setting(0.0, SHARE)
    validation_images: int = setting(1024, IMAGES)
    objective: Literal["masked", "contrastive", "both", "auto"] = setting(
        "auto", "masked patches, captions (contrastive), or both; auto: both where there are captions"
    )
    seen: tuple[float, float] = setting((0.25, 0.9), "least and largest share of the patches that a step shows")
    normalize: bool = setting(False, "of a patch that is not seen, leave out its own mean and deviation")
    noise: float = setting(0.1, "deviation of noise to look through, in normalised pixels")
    feature_noise: float = setting(
        0.0, "deviation of noise on the features, in units of theirs, before anything is read from them"
    )
    shift: int = setting(3, "pixels by which images are moved at most, at random")
    decoder_depth: int = setting(1, "blocks that draw the patches that are not seen")
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    text: TextConfig = field(default_factory=TextConfig)
    workers: int = setting(2, "threads that read image files")
    output: str | None = setting(None, "folder of the run; none: nothing is written")
    seed: int = setting(0, "of weights, data order and masks")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    threads: int | None = setting(None, THREADS)
    tensorboard: bool = setting(True, "write TensorBoard files too, if it is installed")
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        check_validation(self, SHAPES_WORLD)
        low, high = self.seen
        if not 0 < low <= high <= 1:
            raise ValueError(f"seen: expected two shares in (0, 1], the lesser first, got {low:g} and {high:g}")
        for name in ("noise", "feature_noise", "shift"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)}")
        for name, least in (("decoder_depth", self.decoder_depth), ("text.length", self.text.length)):
            if least < 1:
                raise ValueError(f"{name}: expected at least 1, got {least}")
        if self.text.width < 4 or self.text.width % 4:
            raise ValueError(f"text.width: expected a multiple of 4 (heads), got {self.text.width}")

    def about(self) -> str:
        fit = self.fit or ("stretch" if self.model is None else None)
        return sizes_told(self.preset, self.tokenizer, self.model, fit)
