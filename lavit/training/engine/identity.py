"""What a checkpoint belongs to: settings that give its state a meaning, and parts that it was learned beside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lavit.training.engine.config import to_dict

FREE = frozenset(
    # Places and conveniences; what lies in these places is known by its contents.
    "output device tensorboard workers data text model tokenizer language_model encoder base split "
    "draw_steps draw_guidance sampling gradient_checkpointing cache schedule "
    # How long and how closely; a run may be made longer.
    "loop.steps loop.log_every loop.checkpoint_every loop.keep_checkpoints loop.max_bad_steps loop.clip".split()
)
"""Settings, or sections of them, that may differ when a run is resumed."""


def settings_of(config: Any) -> dict[str, Any]:
    """Dotted names and values of the settings that a resumed run must have in common with its checkpoint."""
    found: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        # A free mapping under the name of a place (stage 1's `tokenizer`) is none.
        if name in FREE and (not isinstance(value, Mapping) or name in ("cache", "schedule", "sampling")):
            return
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(inner, f"{name}.{key}".lstrip("."))
        else:
            found[name] = value

    walk(to_dict(config), "")
    return json.loads(json.dumps(found))


def digest(*parts: Any) -> str:
    """32 hexadecimal digits of plain values, of (name, tensor) pairs, or of iterables of such pairs."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, (str, int, float, Mapping)) or part is None:
            found.update(json.dumps(part, sort_keys=True, default=str).encode())
        else:
            _add_tensors(found, part)
    return found.hexdigest()


def _add_tensors(found: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in tensors:
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """ "name: X, now Y" for all that differ."""
    missing = "nothing"
    return [
        f"{name}: {saved.get(name, missing)!r}, now {here.get(name, missing)!r}"
        for name in sorted(saved.keys() | here.keys())
        if saved.get(name, missing) != here.get(name, missing)
    ]
