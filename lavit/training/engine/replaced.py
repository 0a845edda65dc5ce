"""The run that a folder held before the one that replaces it (--overwrite).

    OUTPUT/.replaced     what the earlier run and its model consist of, whole: a folder that loads
    OUTPUT/.replacing    the same while it is moved there or back

It is moved aside before the new run writes anything, deleted when the new model is saved, and put back where the new
run ends before its first checkpoint. A process that is killed can do nothing of this: whatever trains in the folder
next does it (`recover`). Files that are no part of a run stay where they are, and so does the cache of features.
OUTPUT/encoder is a part of the run that has trained it first (`own_encoder`), and of no other.

Whoever calls these functions holds the folder's lock.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lavit.data.atomic_write import sync_folder
from lavit.training.engine import config as configuration
from lavit.training.engine.recipe import CONFIG_FILE

INDEX = ("config.json", "model_index.json")
"""Without the one a model does not load, without the other a pipeline: each is written last."""
STEPS = "checkpoints/step-*/checkpoint.json"
ASIDE, MOVING = ".replaced", ".replacing"
PARTS = (
    *INDEX,
    *(CONFIG_FILE, "metrics.jsonl", "tensorboard", "checkpoints", "best"),
    *("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json"),
    *("generation_config.json", "answer_generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "chat_template.jinja"),
)
"""Names of what a run and the saving of its model write; a pipeline's folders are named in its index."""
ENCODER = "encoder"
"""Folder of the run that trains an encoder for one of stage 1 that is given none."""
SHARED = "preset tokenizer data fit scenes seed validation validation_share validation_images".split()
"""Settings that the two have in common."""
SOURCES = ("model", "tokenizer", "encoder", "language_model", "base")
"""Settings that name what a run begins with."""


def own_encoder(output: Path) -> Path | None:
    """The encoder that the run in `output` has trained first: one of stage 1 that is given none. None where it has not,
    and where the one that is there is somebody's own: trained by itself, or given to the run."""
    place = output / ENCODER
    with suppress(configuration.ConfigError, AttributeError):
        run, encoder = (configuration.read_yaml(folder / CONFIG_FILE) for folder in (output, place))
        if "encoder_steps" not in run or any(run.get(name) is not None for name in ("encoder", "model")):
            return None
        usual = 32 if run.get("preset") == "small" else None
        if run.get("data") == "shapes" and (run.get("tokenizer") or {}).get("image_size", usual) == 32:
            return None  # of the built-in world in its own size it has a first encoder without a folder
        steps = (encoder.get("loop") or {}).get("steps")
        if run["encoder_steps"] in (None, steps) and all(run.get(name) == encoder.get(name) for name in SHARED):
            return place
    return None


def begins_from(settings: Mapping[str, Any], output: Path) -> bool:
    """Whether a run with these settings reads something that it is to replace in `output`."""
    own, encoder = output.resolve(), (output / ENCODER).resolve()
    return any(place.is_relative_to(own) and not place.is_relative_to(encoder) for place in _sources(settings))


def _sources(settings: Mapping[str, Any]) -> list[Path]:
    given = [place for name in SOURCES if isinstance(place := settings.get(name), str)]
    behind = [place.partition(":")[2] for place in given]  # transformers:FOLDER, and timm:NAME@FILE
    return [Path(place).resolve() for place in (*given, *behind, *(one.partition("@")[2] for one in behind)) if place]


def checkpoints_in(output: Path) -> list[Path]:
    """What there is to go on from: the run's checkpoints, and those of the encoder that stage 1 trains first."""
    return [file for place in (output, own_encoder(output)) if place is not None for file in place.glob(STEPS)]


def holds_run(output: Path) -> bool:
    """Whether there is a checkpoint of the run itself, or its model."""
    return any(output.glob(STEPS)) or any((output / name).exists() for name in INDEX)


def has_begun(output: Path) -> bool:
    """Whether there is anything to go on from."""
    return holds_run(output) or bool(checkpoints_in(output))


def set_aside(output: Path, settings: Mapping[str, Any] | None = None, encoder_first: bool = False) -> None:
    """Moves the run in `output` aside, and with it one that lies aside already. The index goes first: what is left
    behind by a move that is cut off is no model.

    settings: of the run that is to replace it; an encoder that it reads stays, whosever it is. encoder_first: it trains
    one of its own; what is in that place goes aside.
    """
    moving = output / MOVING
    parts, encoder = list(_parts(output)), output / ENCODER
    if any(place.is_relative_to(encoder.resolve()) for place in _sources(settings or {})):
        parts = [path for path in parts if path != encoder]
    elif encoder_first and encoder not in parts and ((encoder / CONFIG_FILE).is_file() or holds_run(encoder)):
        parts.append(encoder)
    moving.mkdir()
    for path in [*parts, output / ASIDE]:
        if path.exists():
            os.rename(path, moving / path.name)
    os.rename(moving, output / ASIDE)
    sync_folder(output)


def put_back(output: Path) -> None:
    """Puts the run aside in its place again. What the other has left there, which is nothing to go on from, is
    deleted."""
    places = [output / path.name for path in (output / ASIDE).iterdir() if path.name != ASIDE]
    for path in dict.fromkeys([*_parts(output), *places]):
        if os.path.lexists(path):
            _delete(path)
    os.rename(output / ASIDE, output / MOVING)
    _move_back(output)


def discard(output: Path) -> None:
    """Deletes the run aside, if there is one."""
    shutil.rmtree(output / ASIDE, ignore_errors=True)


def unsettled(output: Path) -> bool:
    """Whether there is something for `recover` to put back. Another process may be doing so: a run that lies aside
    becomes one that is moved, so that is the order to look in."""
    aside = (output / ASIDE).is_dir()
    return (output / MOVING).is_dir() or (aside and not has_begun(output))


def recover(output: Path) -> bool:
    """Takes back what a process that was killed has left half done, and puts the run aside in its place again where the
    one that was to replace it has left nothing to go on from. Whether anything was put back."""
    if (output / MOVING).is_dir():
        _move_back(output)
        return True
    if not (output / ASIDE).is_dir():
        return False
    if not has_begun(output):
        put_back(output)
        return True
    if any((output / name).exists() for name in INDEX):  # the new model is whole
        discard(output)
    return False


def _move_back(output: Path) -> None:
    moving = output / MOVING
    for path in sorted(moving.iterdir(), key=lambda path: path.name in INDEX):
        os.rename(path, output / path.name)
    moving.rmdir()
    sync_folder(output)


def _parts(output: Path) -> Iterator[Path]:
    """What there is of a run, its index first."""
    found = [path for path in sorted(output.iterdir()) if any(fnmatch(path.name, name) for name in PARTS)]
    found += [path for path in _of_pipeline(output) if path.is_dir() and path not in found]
    found = [*filter(None, [own_encoder(output)]), *found]
    yield from sorted(found, key=lambda path: path.name not in INDEX)


def _of_pipeline(output: Path) -> list[Path]:
    with suppress(OSError, ValueError, AttributeError):
        named = json.loads((output / INDEX[1]).read_text(encoding="utf-8")).items()
        named = [name for name, entry in named if isinstance(entry, list) and all(entry)]
        # The index may be somebody else's: nothing outside of the folder, and no hidden file, is a part of the run.
        return [output / name for name in named if Path(name).name == name and not name.startswith(".")]
    return []


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
