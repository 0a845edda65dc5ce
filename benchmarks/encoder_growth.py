"""How images a second and memory grow with the batch: ``python -m benchmarks.encoder_growth OUT.svg``.

From images to codes by the ways of `benchmarks.tokenizer.bench_image_to_tokens`, at the paper's width with fewer
blocks, so that it ends on a laptop; the time is the processor's. Each curve says its exponent, fitted by least squares
to the logarithms of all its points: images a second that do not depend on the batch have 0, memory in proportion 1.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.plot import INKS, MARKERS, POINT, fitted
from benchmarks.timing import peak_bytes
from benchmarks.tokenizer.bench_image_to_tokens import WAYS, Way, codes_by, prepared, random_model
from lavit.report.plots import drawing, tick

SHOWN = ("release, float32", "lavit, float32", "lavit, bfloat16, compiled", "lavit, int8, compiled")
BATCHES = (1, 2, 4, 8)
ENCODER, MERGER = 2, 1  # blocks
ROUNDS = 2


@dataclass(frozen=True)
class Curve:
    """peak_bytes: the most that was held at once beyond weights and pixels."""

    name: str
    batches: list[int]
    images_per_second: list[float]
    peak_bytes: list[int]


def curve(way: Way, batches: Sequence[int]) -> Curve:
    model = prepared(way, random_model("cpu", encoder_depth=ENCODER, merger_depth=MERGER), batches)
    codes, rates, peaks = codes_by(way, model), [], []
    for batch in batches:
        pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(batch))
        codes(pixels, None)
        times = []
        for _ in range(ROUNDS):
            begun = time.process_time()
            codes(pixels, None)
            times.append(time.process_time() - begun)
        rates.append(batch / min(times))
        peaks.append(peak_bytes(partial(codes, pixels, None), torch.device("cpu"), warm=True))
    return Curve(way.name, list(batches), rates, peaks)


def picture(curves: Sequence[Curve]) -> str:
    file = io.StringIO()
    with drawing("encoder growth", 13 * POINT):
        figure = Figure((6.4, 7.4), facecolor="white", layout="constrained")
        speed, memory = figure.subplots(2, 1)
        for axes, title, unit in (
            (speed, f"Images a second of processor time, {ENCODER} of 40 blocks", "images/s"),
            (memory, "The most memory held beyond the weights", "MB"),
        ):
            axes.set_title(title, loc="left", size=13 * POINT)
            axes.set(xlabel="images in a batch", ylabel=unit, xscale="log", yscale="log")
            shown: list[float] = []
            for i, one in enumerate(curves):
                values = one.images_per_second if axes is speed else [count / 1e6 for count in one.peak_bytes]
                shown += values
                exponent = round(fitted([*zip(one.batches, values, strict=True)]), 2) + 0.0  # 0, not minus 0
                told = f"{one.name}: batch^{exponent:.2f}".replace("-", "−")
                axes.plot(one.batches, values, MARKERS[i % len(MARKERS)], color=INKS[i % len(INKS)], ms=5, label=told)
            low, high = min(shown) / 1.3, max(shown) * 1.3
            axes.set_ylim(low, high * (high / low) ** 0.5)  # room for the names above the curves
            axes.set_xlim(curves[0].batches[0] / 1.08, curves[0].batches[-1] * 1.08)
            axes.set_xticks(curves[0].batches)
            axes.legend(loc="upper left", frameon=False, fontsize=11 * POINT)
            axes.xaxis.set_major_formatter(tick)
            axes.yaxis.set_major_formatter(tick)
            axes.minorticks_off()
            axes.set_yticks(steps(low, high))
        figure.savefig(file, format="svg", metadata={"Date": None})
    return re.sub(r"[ \t]+$", "", file.getvalue(), flags=re.MULTILINE)


def steps(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every decade between two values."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [v for d in decades for v in (10.0**d, 2 * 10.0**d, 5 * 10.0**d) if low <= v <= high]


def main(argv: Sequence[str] | None = None) -> int:
    description = "Images a second and memory against the batch, as SVG."
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder_growth", description=description)
    parser.add_argument("out", type=Path, help="the picture to write, SVG")
    parser.add_argument("--json", type=Path, help="where the figures go, or come from where the file is there")
    arguments = parser.parse_args(argv)
    if arguments.json is not None and arguments.json.exists():
        curves = [Curve(**one) for one in json.loads(arguments.json.read_text())["curves"]]
    else:
        curves = []
        for way in WAYS:
            if way.name in SHOWN:
                curves.append(curve(way, BATCHES))
                gc.collect()
                rates = ", ".join(f"{rate:.3g}" for rate in curves[-1].images_per_second)
                print(f"{way.name}: {rates} images/s", flush=True)
        if arguments.json is not None:
            about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
            about |= {"encoder_blocks": ENCODER, "merger_blocks": MERGER}
            arguments.json.write_text(json.dumps(about | {"curves": [asdict(one) for one in curves]}, indent=1) + "\n")
    arguments.out.write_text(picture(curves))
    for one in curves:
        speed, memory = (fitted([*zip(one.batches, y, strict=True)]) for y in (one.images_per_second, one.peak_bytes))
        print(f"{one.name}: images/s ~ batch^{speed:.2f}, memory ~ batch^{memory:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
