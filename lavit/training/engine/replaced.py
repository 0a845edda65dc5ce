"""The run that a folder held before the one that replaces it (--overwrite).

    OUTPUT/.replaced     what the earlier run and its model consist of, whole: a folder that loads
    OUTPUT/.replacing    the same while it is moved there or back

It is moved aside before the new run writes anything, deleted when the new model is saved, and put back where the new
run ends before its first checkpoint. A process that is killed can do nothing of this: whatever trains in the folder
next does it (`recover`). Files that are no part of a run stay where they are, and so does the cache of features.

Whoever calls these functions holds the folder's lock.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from lavit.data.atomic_write import sync_folder
from lavit.training.engine.recipe import CONFIG_FILE

INDEX = ("config.json", "model_index.json")
"""Without the one a model does not load, without the other a pipeline: each is written last."""
STEPS = "checkpoints/step-*/checkpoint.json"
ASIDE, MOVING = ".replaced", ".replacing"
PARTS = (
    *INDEX,
    *(CONFIG_FILE, "metrics.jsonl", "tensorboard", "checkpoints", "best", "encoder"),
    *("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json"),
    *("generation_config.json", "answer_generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "chat_template.jinja"),
)
"""Names of what a run and the saving of its model write; a pipeline's folders are named in its index."""


def checkpoints_in(output: Path) -> list[Path]:
    """What there is to go on from: the run's checkpoints, and those of the encoder that stage 1 trains first."""
    return [file for place in (output, output / "encoder") for file in place.glob(STEPS)]


def holds_run(output: Path) -> bool:
    """Whether there is a checkpoint of the run itself, or its model."""
    return any(output.glob(STEPS)) or any((output / name).exists() for name in INDEX)


def has_begun(output: Path) -> bool:
    """Whether there is anything to go on from."""
    return holds_run(output) or bool(checkpoints_in(output))


def set_aside(output: Path) -> None:
    """Moves the run in `output` aside, and with it one that lies aside already. The index goes first: what is left
    behind by a move that is cut off is no model."""
    moving = output / MOVING
    moving.mkdir()
    for path in [*_parts(output), output / ASIDE]:
        if path.exists():
            os.rename(path, moving / path.name)
    os.rename(moving, output / ASIDE)
    sync_folder(output)


def put_back(output: Path) -> None:
    """Puts the run aside in its place again. What the other has left there, which is nothing to go on from, is
    deleted."""
    for path in list(_parts(output)):
        _delete(path)
    os.rename(output / ASIDE, output / MOVING)
    _move_back(output)


def discard(output: Path) -> None:
    """Deletes the run aside, if there is one."""
    shutil.rmtree(output / ASIDE, ignore_errors=True)


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
    yield from sorted(found, key=lambda path: path.name not in INDEX)


def _of_pipeline(output: Path) -> list[Path]:
    with suppress(OSError, ValueError, AttributeError):
        named = json.loads((output / INDEX[1]).read_text(encoding="utf-8")).items()
        return [output / name for name, entry in named if isinstance(entry, list) and all(entry)]
    return []


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
