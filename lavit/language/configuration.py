"""Configuration of the whole model: a LLaMA of any size, a visual tokenizer, and the vocabulary that they share."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import AutoConfig, LlamaConfig, PretrainedConfig

from lavit.language.guidance import SamplingSettings
from lavit.language.vocabulary import Vocabulary
from lavit.tokenizer.configuration import LaVITTokenizerConfig, refuse_unknown

# Text sizes: the released model's LLaMA-2-7B, and one that learns the shapes world on a CPU in minutes.
PRESETS: dict[str, dict[str, Any]] = {
    "lavit-g": {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    "small": {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
    },
}


PROMPT_IMAGES = ("features", "codes", "bare_codes")
"""How a model is shown an image of a prompt: ``[IMG] features [/IMG]``, ``[IMG] codes [/IMG]``, or the codes alone."""


def check_prompt_images(name: str) -> None:
    if name not in PROMPT_IMAGES:
        raise ValueError(f"prompt_images: expected one of {', '.join(PROMPT_IMAGES)}, got {name!r}")


# Rotations whose frequencies are constants. Those of "dynamic" and "longrope" follow the largest position of all rows
# that are computed together, or were before.
ROTATIONS = ("default", "linear", "yarn", "llama3", "proportional")


def check_rotation(text_config: LlamaConfig) -> None:
    """Raises ValueError for a ``rope_type`` by which a sample's rotation is not known to depend on its own alone."""
    rope_type = (text_config.rope_parameters or {}).get("rope_type", "default")
    if rope_type not in ROTATIONS:
        raise ValueError(
            f"text_config.rope_parameters: expected a rope_type among {', '.join(ROTATIONS)}, got {rope_type!r}: with "
            "frequencies that change with the length, a sample would depend on those packed or batched with it"
        )


class LaVITConfig(PretrainedConfig):
    """Sizes of a :class:`lavit.LaVIT`.

    text_config: a LlamaConfig (or a dictionary of one) of any size. Its vocab_size counts all rows of the embedding:
        at least ``vocabulary.size``; rows beyond stand for no id, are never predicted and take no part in the softmax.
    tokenizer_config: a LaVITTokenizerConfig (or a dictionary of one).
    text_size: number of text ids, those before [IMG]: 32000 for LLaMA-2. Without ``text_config`` the vocabulary is made
        as large as it must be.
    image_objective: how a written image is learned: "classify" its codes, with text in one softmax (LaVIT), or
        "regress" its visual embeddings (the paper's ablation, as Emu does).
    image_sampling: settings with which this model draws images where its caller says nothing else, in place of those of
        ``SamplingSettings``: ``{"guidance": 1.7}``.
    prompt_images: how this model is shown the images of a prompt that asks for an image, one of ``PROMPT_IMAGES``. The
        release draws after bare codes; a model trained here what its edits showed, by default features.
    answer_early_stopping: end the search for an answer with the first ``num_beams`` texts that have ended, as the
        release does. Five unlikely short ones then keep a likely longer one from being found.
    visual_dtype: "float32" keeps the visual tokenizer, the second merger and the projector in it, in whatever precision
        the language model is loaded; None: they are loaded as it is.
    regression_weight: weight of the regression's loss beside that of the text (*derived*: 1).

    Raises ValueError for an unknown name, for sizes that do not fit together, and for a rotation by which a sample
    depends on its neighbours (``rope_type`` "dynamic" or "longrope" of ``text_config.rope_parameters``).
    """

    model_type = "lavit"
    sub_configs = {"text_config": LlamaConfig, "tokenizer_config": LaVITTokenizerConfig}

    def __init__(
        self,
        text_config: LlamaConfig | dict[str, Any] | None = None,
        tokenizer_config: LaVITTokenizerConfig | dict[str, Any] | None = None,
        text_size: int = 32000,
        image_objective: str = "classify",
        regression_weight: float = 1.0,
        image_sampling: dict[str, Any] | None = None,
        prompt_images: str = "features",
        answer_early_stopping: bool = False,
        visual_dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_unknown(kwargs, type(self))
        if tokenizer_config is None or isinstance(tokenizer_config, dict):
            tokenizer_config = LaVITTokenizerConfig(**(tokenizer_config or {}))
        self.tokenizer_config = tokenizer_config
        self.text_size = text_size
        if text_config is None:
            text_config = LlamaConfig(**PRESETS["lavit-g"], vocab_size=self.vocabulary.size)
        elif isinstance(text_config, dict):
            text_config = LlamaConfig(**text_config)
        if not isinstance(text_config, LlamaConfig):
            raise TypeError(f"text_config: expected a LlamaConfig or a dictionary, got {type(text_config).__name__}")
        self.text_config = text_config
        self.image_objective = image_objective
        self.regression_weight = regression_weight
        self.image_sampling = dict(image_sampling or {})
        self.prompt_images = prompt_images
        self.answer_early_stopping = answer_early_stopping
        self.visual_dtype = visual_dtype
        super().__init__(**kwargs)
        self._check()

    @property
    def vocabulary(self) -> Vocabulary:
        """Which ids are text, markers and codes."""
        return Vocabulary(self.text_size, self.tokenizer_config.num_codes)

    @classmethod
    def preset(
        cls,
        name: str,
        text_size: int = 32000,
        tokenizer_config: LaVITTokenizerConfig | None = None,
        **text_overrides: Any,
    ) -> LaVITConfig:
        """A named configuration ("small" or "lavit-g"), with some values of its language model replaced.

        tokenizer_config: of another tokenizer than the preset of the same name.
        """
        if name not in PRESETS:
            raise ValueError(f"name: expected one of {', '.join(sorted(PRESETS))}, got {name!r}")
        tokenizer_config = tokenizer_config or LaVITTokenizerConfig.preset(name)
        size = Vocabulary(text_size, tokenizer_config.num_codes).size
        text_config = LlamaConfig(**{**PRESETS[name], "vocab_size": size, **text_overrides})
        return cls(text_config=text_config, tokenizer_config=tokenizer_config, text_size=text_size)

    def _check(self) -> None:
        check_rotation(self.text_config)
        rows, ids = self.text_config.vocab_size, self.vocabulary
        if rows < ids.size:
            raise ValueError(
                f"text_config.vocab_size: expected at least {ids.size} rows ({ids.text_size} text ids, [IMG], [/IMG] "
                f"and {ids.num_codes} codes), got {rows}: a checkpoint of another vocabulary?"
            )
        if self.image_objective not in ("classify", "regress"):
            raise ValueError(f"image_objective: expected classify or regress, got {self.image_objective!r}")
        check_prompt_images(self.prompt_images)
        if self.visual_dtype not in (None, "float32"):
            raise ValueError(f"visual_dtype: expected float32 or None, got {self.visual_dtype!r}")
        if not self.regression_weight > 0:
            raise ValueError(f"regression_weight: expected a positive number, got {self.regression_weight}")
        known = [field.name for field in fields(SamplingSettings)]
        if unknown := sorted(self.image_sampling.keys() - set(known)):
            raise ValueError(f"image_sampling: expected names of {', '.join(known)}, got {', '.join(unknown)}")
        SamplingSettings(**self.image_sampling)


AutoConfig.register(LaVITConfig.model_type, LaVITConfig, exist_ok=True)
