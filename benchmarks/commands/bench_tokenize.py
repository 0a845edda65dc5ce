"""`lavit tokenize` on a folder of photographs against its parts alone: reading without an encoder, the encoder without
reading. ``pytest benchmarks/commands/bench_tokenize.py``; LAVIT_WORKERS=4 sets the readers, by default one for each
core.

Where encoder and readers work on different processors, the whole is to be as fast as the slower of them; "asleep" is
such an encoder: it sleeps so many seconds an image. Where they share cores, as on a CPU, no overlap can give more than
the cores do: there the processor time of the whole is to be little more than that of both parts.

The photographs are noise of many scales, JPEG: 500 x 375 pixels like ImageNet's, or 12 megapixels as from a telephone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lavit.commands.options import pick_workers
from lavit.commands.tokenize_run import Encoder, prepare
from lavit.data.images import load_image
from lavit.data.prefetch import Pipeline, Timing
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig

QUALITY = 90
ROUNDS = 3
DIFFERENT = 256
"""Photographs that are made; beyond, the same come again."""


@dataclass(frozen=True)
class Case:
    """images: files of a run. depth: of the encoder, None for the preset's. asleep: seconds an image in place of it.
    reading, encoding: the least share of their rate that the whole is to have. both: the least share of the whole's
    processor time that is theirs."""

    name: str
    preset: str
    images: int
    batch: int
    size: tuple[int, int] = (500, 375)
    depth: int | None = None
    asleep: float | None = None
    reading: float = 0.0
    encoding: float = 0.0
    both: float = 0.9
    device: str = "cpu"


CASES = (
    Case("small", "small", 400, 16),
    Case("small, 12 megapixels", "small", 32, 4, size=(4032, 3024), reading=0.9),
    Case("small, asleep 0.2 ms", "small", 400, 16, asleep=2e-4, reading=0.9),
    Case("lavit-g, 2 of 40 blocks", "lavit-g", 16, 4, depth=2),
    Case("lavit-g, asleep 20 ms", "lavit-g", 400, 16, asleep=2e-2, encoding=0.97),
    Case("small on a GPU", "small", 2048, 64, reading=0.9, both=0.0, device="cuda"),
    Case("lavit-g on a GPU", "lavit-g", 2048, 32, encoding=0.97, both=0.0, device="cuda"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def bench_tokenize(benchmark, device, photographs, case):
    if case.device != device.type:
        pytest.skip(f"{case.name}: measured on {case.device}")
    workers = pick_workers(int(os.environ["LAVIT_WORKERS"]) if "LAVIT_WORKERS" in os.environ else None)
    processor, encoder = parts(case, device)
    files = photographs(case.images, case.size)
    found: dict[str, list[tuple[float, float, Timing]]] = {"reading": [], "encoding": [], "whole": []}

    def once() -> None:
        # In turns, so that what else the machine does meets all three.
        for name, runs in found.items():
            begin = time.process_time()
            timing = run(name, files, processor, encoder, case, workers)
            runs.append((timing.rate, (time.process_time() - begin) / timing.items, timing))

    benchmark.pedantic(once, rounds=1 if "LAVIT_DRY" in os.environ else ROUNDS)
    rate = {name: max(rate for rate, _, _ in runs) for name, runs in found.items()}
    used = {name: min(used for _, used, _ in runs) for name, runs in found.items()}
    best = max(found["whole"], key=lambda one: one[0])[2]
    shares = {f"of_{name}": rate["whole"] / rate[name] for name in ("reading", "encoding")}
    shares["of_both"] = (used["reading"] + used["encoding"]) / used["whole"]
    benchmark.group = f"lavit tokenize, {case.name}, {workers} readers"
    benchmark.extra_info.update(
        shares,
        **{f"{name}_per_second": value for name, value in rate.items()},
        **{f"{name}_processor_seconds": value for name, value in used.items()},
        **{f"{name}_share": share for name, share in best.shares().items()},
    )
    told = [f"{name} {rate[name]:.1f} images/s, {1e3 * used[name]:.2f} ms of a core" for name in found]
    of = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    print(f"\n{benchmark.group}: {'; '.join(told)}; {of}\n  waits: {best.shares()}")
    least = {"of_reading": case.reading, "of_encoding": case.encoding, "of_both": case.both}
    short = [name for name, share in least.items() if shares[name] < share]
    assert not short or "LAVIT_DRY" in os.environ, f"{benchmark.group}: {short} below {least}: {shares}"


def run(
    name: str, files: Sequence[str], processor: LaVITImageProcessor, encoder: Any, case: Case, workers: int
) -> Timing:
    """reading: nothing is computed. encoding: the same pictures every time, gathered as in the whole. whole: all of the
    command but its file of results."""
    if name == "encoding":
        picture = prepare(load_image(files[0]), processor)
        return Pipeline[str, Any](
            lambda file: picture, encoder.gather, encoder.encode, results(encoder), batch_size=case.batch, workers=1
        ).run(files)
    read = lambda file: prepare(load_image(file), processor)  # noqa: E731
    if name == "reading":
        return Pipeline[str, Any](read, len, int, lambda *_: None, batch_size=case.batch, workers=workers).run(files)
    return Pipeline[str, Any](
        read, encoder.gather, encoder.encode, results(encoder), batch_size=case.batch, workers=workers
    ).run(files)


def results(encoder: Any) -> Any:
    return lambda entries, tokens: encoder.results(tokens)


class Asleep:
    """An encoder that works elsewhere."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def gather(self, pictures: Sequence[Any]) -> int:
        return len(pictures)

    def encode(self, count: int) -> int:
        time.sleep(self.seconds * count)
        return count

    def results(self, tokens: int) -> None:
        pass


@cache
def parts(case: Case, device: torch.device) -> tuple[LaVITImageProcessor, Any]:
    config = LaVITTokenizerConfig.preset(case.preset)
    processor = LaVITImageProcessor(config.image_size)
    if case.asleep is not None:
        return processor, Asleep(case.asleep)
    if case.depth is not None:
        config.encoder_depth, config.merger_depth, config.decoder_depth = case.depth, 1, 1
    torch.manual_seed(0)
    with torch.device(device):
        model = LaVITTokenizer(config).eval()
    if device.type == "cuda":  # as fast as it gets, for then reading has to be
        model.for_inference(dtype="bfloat16", compile=True, batch_sizes=(case.batch,))
        model.encode_features(torch.zeros(case.batch, 3, config.image_size, config.image_size, device=device))
    return processor, Encoder(model, processor)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Callable[[int, tuple[int, int]], list[str]]:
    @cache
    def make(count: int, size: tuple[int, int]) -> list[str]:
        folder = tmp_path_factory.mktemp("photographs")
        generator = np.random.default_rng(0)
        files = []
        for number in range(min(count, DIFFERENT)):
            picture = np.zeros((size[1], size[0], 3), np.float32)
            for scale in (4, 16, 64):  # as much in every octave, as photographs have
                noise = generator.integers(0, 256, (size[1] // scale + 1, size[0] // scale + 1, 3), dtype=np.uint8)
                picture += np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)) / np.float32(3)
            files.append(str(folder / f"{number:05}.jpg"))
            Image.fromarray(picture.astype(np.uint8)).save(files[-1], quality=QUALITY)
        return [files[number % DIFFERENT] for number in range(count)]

    return make
