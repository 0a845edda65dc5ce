"""Settings of a stage-2 run, and the recipes of the two presets."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from lavit.shapes.world import SHAPES_WORLD
from lavit.training.engine.config import setting
from lavit.training.engine.recipe import THREADS, LoopConfig, Recipe, check_tokenizer
from lavit.training.engine.schedule import ScheduleConfig
from lavit.training.engine.validation_settings import FOLDER, IMAGES, SHARE, check_validation


@dataclass
class RatesConfig:
    """Learning rates of the parts, as factors of the schedule's. Published: 1e-5 for the LM, 1e-4 for visual parts."""

    language: float = setting(1.0, "of the language model; 0: it stays as it is")
    new_rows: float = setting(1.0, "of the vocabulary's rows from [IMG] on")
    visual: float = setting(1.0, "of the understanding merger and projector")


@dataclass
class AdamConfig:
    """AdamW as in the authors' follow-up (*derived*)."""

    betas: tuple[float, float] = setting((0.9, 0.95), "AdamW's betas")
    eps: float = setting(1e-6, "AdamW's epsilon")
    weight_decay: float = setting(0.1, "of matrices; norms, biases and embeddings have none")


@dataclass
class MixtureConfig:
    """Which samples, and how often: shares of the samples, not of the tokens."""

    caption: float = setting(1.0, "[image, text]: the image as continuous features, its text is learned")
    question: float = setting(1.0, "[image, question, answer]: the answer is learned (derived)")
    image: float = setting(2.0, "[text, image]: the text, then the image's codes are learned")
    unprompted: float = setting(0.0, "the codes alone, which is what guidance leads away from (derived)")
    edit: float = setting(0.0, "[image, text, image]: the text, then the last one's codes are learned (derived)")
    text: float = setting(0.0, "text alone; the paper: twice as much as vision-language")
    follow: bool = setting(False, "of a folder: shares by what it holds; off once a share is given as --mixture.NAME")

    @property
    def shares(self) -> dict[str, float]:
        """By kind of sample."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "follow"}


@dataclass
class LanguageTrainingConfig(Recipe):
    """A run of stage 2. The defaults suit the preset "small"; `recipe` gives each preset its own."""

    preset: str = setting("small", "small or lavit-g: sizes of a new language model, and the recipe to start from")
    tokenizer: str | None = setting(None, "folder of the visual tokenizer that stage 1 left")
    language_model: str | None = setting(None, "folder of a LLaMA to start from; none: a new one of the preset's size")
    model: str | None = setting(None, "LaVIT to go on from (a folder), instead of the two")
    text_config: dict[str, Any] = setting(dict, "changes to the preset's language model: text_config.hidden_size=64")
    text_vocabulary: int = setting(400, "most ids of the text tokenizer that is trained for a new language model")
    objective: Literal["classify", "regress"] = setting("classify", "codes, or their visual embeddings (the ablation)")
    predict_prompts: bool = setting(True, "predict the text before an image, of edits too (the paper: every position)")
    predict_codes: bool = setting(False, "predict the codes of images that are shown, too (not known of the original)")
    prompt_images: Literal["features", "codes", "bare_codes"] | None = setting(
        None,
        "as what the model is shown an image when it is to draw one; in edits codes, or else features; "
        "none: as `model` is, features for a new one",
    )
    data: str = setting(SHAPES_WORLD, "shapes: the built-in world; or a folder of captioned images")
    scenes: int = setting(8192, "number of different scenes of the shapes world")
    edited: int = setting(4096, "of these scenes, how many at most are shown changed too, where the mixture has edits")
    split: str | None = setting(None, "of a folder whose captions.json is Karpathy's; none: all of it")
    text: str | None = setting(None, "file of texts, .txt or .jsonl, instead of the folder's")
    validation: str | None = setting(None, FOLDER)
    validation_share: float = setting(0.0, SHARE)
    validation_images: int = setting(1024, IMAGES)
    workers: int = setting(2, "threads that read image files")
    sampling: dict[str, Any] = setting(dict, "how the model draws images where nobody says how: sampling.guidance=2")
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    token_budget: int = setting(1024, "tokens of a packed row; a micro-batch is one such row")
    window: int = setting(256, "samples that are packed together")
    output: str | None = setting(None, "folder of the run; none: nothing is written")
    seed: int = setting(0, "of weights, data order and mixture")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    threads: int | None = setting(None, THREADS)
    tensorboard: bool = setting(True, "write TensorBoard files too, if it is installed")
    rates: RatesConfig = field(default_factory=RatesConfig)
    optimizer: AdamConfig = field(default_factory=AdamConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000, batch_size=1))

    def __post_init__(self) -> None:
        if self.loop.batch_size != 1:
            raise ValueError(
                f"loop.batch_size: expected 1, got {self.loop.batch_size}: a micro-batch is one packed row "
                "(token_budget is its size, loop.accumulate the number of rows a step)"
            )
        if self.model is not None and (self.tokenizer is not None or self.language_model is not None):
            raise ValueError("model: expected no tokenizer and no language_model beside it")
        if self.data == SHAPES_WORLD and self.mixture.edit > 0 and self.edited < 1:
            raise ValueError(f"edited: expected at least 1 where mixture.edit is above 0, got {self.edited}")
        for name in ("split", "text"):
            if self.data == SHAPES_WORLD and getattr(self, name) is not None:
                raise ValueError(f"{name}: expected none with --data shapes, got {getattr(self, name)}")
        check_validation(self, SHAPES_WORLD)

    @classmethod
    def implied(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Who gives a share by hand has all shares as they stand, whatever the folder holds."""
        by_hand = any(name.startswith("mixture.") for name in given) and "mixture.follow" not in given
        return given | {"mixture.follow": False} if by_hand else given

    def check_sources(self, tokenizer: bool = False) -> None:
        check_tokenizer(self, tokenizer)
        if self.preset != "small" and self.model is None and self.language_model is None:
            raise ValueError(f"language_model: the preset {self.preset} starts from a LLaMA: --language-model FOLDER")
