"""Sizes of a quickstart."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class QuickstartConfig:
    """Sizes of a run. The defaults are the quickstart; ``fast`` gives a miniature that learns next to nothing.

    output: folder of the report, results.json and the models. device: "auto", "cpu", "cuda" or "cuda:N".
    length: "dynamic", or "fixed" for a tokenizer of the same size that gives every image as many tokens.
    encoder_steps, recipe, language_recipe, pixels_recipe: of the trainings; the recipes override the preset's, as
    `lavit train tokenizer`, `lavit train language` and `lavit train pixels` do.
    train_scenes, test_scenes, probe_scenes: scenes to train on, to measure on, and to train the probes on.
    language: go on with the language stage. language_scenes: of ``test_scenes``, how many are captioned, asked about
    and asked for. pixels: go on with the pixel stage. pixels_scenes: of these, or without a language stage of
    ``test_scenes``, how many are painted.
    """

    output: Path = Path("quickstart")
    seed: int = 0
    device: str = "auto"
    length: Literal["dynamic", "fixed"] = "dynamic"
    encoder_steps: int = 400
    encoder_batch: int = 64
    train_scenes: int = 8192
    test_scenes: int = 1000
    probe_scenes: int = 3000
    probe_steps: int = 400
    shown_scenes: int = 12
    shown_photos: int = 8
    recipe: dict[str, Any] = field(default_factory=dict)
    language: bool = True
    language_scenes: int = 300
    language_recipe: dict[str, Any] = field(default_factory=dict)
    pixels: bool = True
    pixels_scenes: int = 150
    pixels_recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def painted_scenes(self) -> int:
        """``pixels_scenes``, but no more than have tokens to be painted."""
        most = self.language_scenes if self.language else self.test_scenes
        return min(self.pixels_scenes, self.test_scenes, most)

    def shared(self, device: torch.device) -> dict[str, Any]:
        """What the recipes of all stages have from here; a run of a stage writes nothing by itself."""
        return {"seed": self.seed, "device": str(device), "output": None, "scenes": self.train_scenes}

    @classmethod
    def fast(cls, **changes: Any) -> QuickstartConfig:
        """Every stage once, in seconds, to see that the machine can do it."""
        sizes: dict[str, Any] = {
            "encoder_steps": 6,
            "encoder_batch": 16,
            "train_scenes": 128,
            "test_scenes": 64,
            "probe_scenes": 64,
            "probe_steps": 5,
            "shown_scenes": 4,
            "shown_photos": 3,
            "recipe": {"loop.steps": 10, "loop.batch_size": 16, "loop.log_every": 5, "vectors_per_code": 1},
            "language_scenes": 8,
            "language_recipe": {"loop.steps": 4, "loop.log_every": 2, "token_budget": 256},
            "pixels_scenes": 4,
            "pixels_recipe": {"loop.steps": 3, "loop.batch_size": 8, "loop.log_every": 1},
        }
        return cls(**{**sizes, **changes})
