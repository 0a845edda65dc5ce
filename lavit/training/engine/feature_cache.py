"""Features of the frozen encoder, computed once and kept on the disk.

    features-<fingerprint>/features.npy   (n, N, C), memory-mapped when read
                           features.json  fingerprint, precision, images that could not be read

The fingerprint covers what the features depend on (encoder, standardisation), the data and the precision: a cache that
does not match is not found, and a new one is made. The folder appears under its name when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavit.data import DataStream
from lavit.data.atomic_write import atomic_write
from lavit.training.engine import distributed
from lavit.training.engine.identity import add_tensors

# The most exact first. numpy has no bfloat16: its bits are stored as 16-bit integers.
STORED = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.int16}


class FeatureCache:
    """An open cache. values: (n, N, C), a memory-mapped tensor with a row for every image that could be read.

    skipped: the others, as (number in the data set, name, reason).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        about = json.loads((folder / "features.json").read_text(encoding="utf-8"))
        self.skipped = [(int(index), str(name), str(reason)) for index, name, reason in about["skipped"]]
        # "c": pages become private to this process if ever written to, so that torch may wrap the file's memory.
        stored = np.lib.format.open_memmap(folder / "features.npy", mode="c")
        self.values = torch.from_numpy(np.asarray(stored)).view(getattr(torch, about["dtype"]))


def fingerprint(depends_on: Iterable[tuple[str, Tensor]], dataset: Any, dtype: torch.dtype) -> str:
    """32 hexadecimal digits. depends_on: named tensors; dataset: an array of images, or one with a `fingerprint`.

    Where the data set has `paths`, sizes and times of change count too: a file that was replaced is noticed.
    """
    digest = hashlib.blake2b(f"1 {dtype} {len(dataset)}".encode(), digest_size=16)
    add_tensors(digest, depends_on)
    if isinstance(dataset, Tensor | np.ndarray):
        digest.update(np.ascontiguousarray(dataset).reshape(-1).view(np.uint8).data)
    else:
        digest.update(str(dataset.fingerprint).encode())
    for path in getattr(dataset, "paths", ()):
        found = os.stat(path)
        digest.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def open_or_build(
    root: str | os.PathLike,
    encode: Callable[[Tensor], Tensor],
    depends_on: Iterable[tuple[str, Tensor]],
    dataset: Any,
    *,
    transform: Callable[[Any], Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 64,
    workers: int = 0,
) -> FeatureCache:
    """The cache below `root` that fits, made first if there is none.

    encode: images (b, 3, S, S) -> features (b, N, C). dataset, transform, workers: as `DataStream` takes them.
    Several processes share the work and need a common file system.
    Raises ImageError where not a single image can be read.
    """
    if dtype not in STORED:
        raise ValueError(f"dtype: expected float32, float16 or bfloat16, got {dtype}")
    mark = fingerprint(depends_on, dataset, dtype)
    folder = Path(root) / f"features-{mark}"
    if not distributed.first_says((folder / "features.json").is_file()):
        stream = DataStream(
            dataset,
            batch_size,
            transform=transform,
            shuffle=False,
            epochs=1,
            workers=workers,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        with stream:
            _build(folder, mark, encode, stream, dtype)
    return FeatureCache(folder)


def _build(
    folder: Path, mark: str, encode: Callable[[Tensor], Tensor], stream: DataStream, dtype: torch.dtype
) -> None:
    rank, world = distributed.rank(), distributed.world_size()
    hidden = folder.with_name(f".{folder.name}.tmp")
    if rank == 0:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
    distributed.barrier()
    try:
        rows, stored, done = hidden / f"rows-{rank}.npy", None, 0
        index: list[int] = []
        for batch in stream:
            with torch.no_grad():
                values = encode(batch["images"]).to("cpu", dtype)
            if stored is None:
                # As many rows as this process can need; the file is sparse, unused ones take no room.
                shape = (-(-len(stream.dataset) // world), *values.shape[1:])
                stored = np.lib.format.open_memmap(rows, "w+", STORED[dtype], shape)
            bits = values.view(torch.int16) if dtype == torch.bfloat16 else values
            stored[done : done + len(values)] = bits.numpy()
            done += len(values)
            index += batch["index"].tolist()
        with atomic_write(hidden / f"rows-{rank}.json") as file:
            skipped = [(item.index, item.name, item.reason) for item in stream.skipped]
            file.write(json.dumps({"index": index, "skipped": skipped}).encode())
        distributed.barrier()
        if rank == 0:
            _join(hidden, mark, dtype, world)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(hidden, folder)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    distributed.barrier()


def _join(hidden: Path, mark: str, dtype: torch.dtype, world: int) -> None:
    """Rows of all processes into one file in the order of the data set, without gaps for images that were skipped."""
    parts = [json.loads((hidden / f"rows-{rank}.json").read_text()) for rank in range(world)]
    order = sorted((index, rank, row) for rank, part in enumerate(parts) for row, index in enumerate(part["index"]))
    files = {r: np.lib.format.open_memmap(hidden / f"rows-{r}.npy", "r") for r in range(world) if parts[r]["index"]}
    final = hidden / "features.npy"
    if world == 1 and len(order) == len(files[0]):
        os.replace(hidden / "rows-0.npy", final)
    else:
        shape = next(iter(files.values())).shape[1:]
        joined = np.lib.format.open_memmap(final, "w+", STORED[dtype], (len(order), *shape))
        for place, (_, rank, row) in enumerate(order):
            joined[place] = files[rank][row]
        joined.flush()
    with open(final, "r+b") as file:
        os.fsync(file.fileno())
    skipped = sorted(entry for part in parts for entry in part["skipped"])
    about = {"fingerprint": mark, "dtype": str(dtype).removeprefix("torch."), "skipped": skipped}
    with atomic_write(hidden / "features.json") as file:
        file.write(json.dumps(about, indent=1).encode())
    for path in hidden.glob("rows-*"):
        path.unlink()
