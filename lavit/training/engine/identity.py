"""What a checkpoint belongs to: settings that give its state a meaning, and parts that it was learned beside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lavit.training.engine.config import to_dict

SECTIONS = frozenset(("cache", "schedule", "sampling"))
FREE = SECTIONS.union(
    # Places and conveniences; what lies in these places is known by its contents, and fit by the image processor.
    "output device threads tensorboard workers data text model tokenizer language_model encoder base split fit".split(),
    "draw_steps draw_guidance gradient_checkpointing validation validation_images".split(),
    # How long and how closely; a run may be made longer.
    "loop.steps loop.log_every loop.checkpoint_every loop.keep_checkpoints loop.max_bad_steps loop.clip".split(),
)
"""Settings, and whole SECTIONS of them, that may differ when a run is resumed."""
BEFORE: dict[str, tuple[Any, ...]] = {
    "validation_share": (0.0,),
    "mixture.follow": (False,),
    "warm_start.relative": (0.0,),
    "feature_noise": (0.0,),
    "standardize": ("place",),
    "prompt_images": (None, "features", "bare_codes"),
}
"""Settings that came later, with the values that do what was done before: checkpoints that do not know them go on. So
do those that do not know a kind of sample of which the mixture has none."""


def settings_of(config: Any) -> dict[str, Any]:
    """Dotted names and plain values of the settings that a resumed run must have in common with its checkpoint."""
    found: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        # A mapping that has the name of a place, as stage 1's changes to its tokenizer, is none.
        if isinstance(value, Mapping) and name not in SECTIONS:
            for key, inner in value.items():
                walk(inner, f"{name}.{key}".lstrip("."))
        elif name not in FREE and not _as_before(name, value):
            found[name] = value

    walk(to_dict(config), "")
    return found


def _as_before(name: str, value: Any) -> bool:
    return value in BEFORE.get(name, ()) or (name.startswith("mixture.") and value == 0)


def digest(part: Mapping[str, Any] | Iterable[tuple[str, Tensor]]) -> str:
    """32 hexadecimal digits of a mapping of plain values, or of tensors with their names."""
    found = hashlib.blake2b(digest_size=16)
    if isinstance(part, Mapping):
        found.update(json.dumps(part, sort_keys=True, default=str).encode())
    else:
        add_tensors(found, part)
    return found.hexdigest()


def add_tensors(found: hashlib.blake2b, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Names, shapes, dtypes and contents into a digest."""
    for name, tensor in tensors:
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """ "name: X, now Y" for all that differ."""
    missing = "nothing"
    saved, here = ({k: v for k, v in one.items() if not _as_before(k, v)} for one in (saved, here))
    return [
        f"{name}: {saved.get(name, missing)!r}, now {here.get(name, missing)!r}"
        for name in sorted(saved.keys() | here.keys())
        if saved.get(name, missing) != here.get(name, missing)
    ]
