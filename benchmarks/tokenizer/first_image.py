"""How long the first image takes, from a tokenizer in memory: ``python -m benchmarks.tokenizer.first_image``.

For each way to run the paper's model, a process whose compiler has an empty cache (cold), and one that finds what the
first has compiled (warm). Prints Markdown: seconds of `for_inference`, until the first image's codes, and of the second
image.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks.tokenizer.bench_image_to_tokens import WAYS, codes_by, images, prepared, random_model

OURS = ("lavit, float32, compiled", "lavit, bfloat16, compiled", "lavit, int8, compiled")
SHOWN = ("release, bfloat16, compiled", *OURS)


def measure(name: str) -> dict[str, float]:
    """In this process."""
    way = next(way for way in WAYS if way.name == name)
    made, pixels = random_model("cpu"), images("cpu", 1)
    times = [time.perf_counter()]
    codes = codes_by(way, prepared(way, made, (1,)))
    times.append(time.perf_counter())
    for _ in range(2):
        codes(pixels, None)
        times.append(time.perf_counter())
    return {"prepare": times[1] - times[0], "first": times[2] - times[0], "second": times[3] - times[2]}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenizer.first_image", description="First image.")
    parser.add_argument("--ways", nargs="*", default=SHOWN, metavar="WAY", help=f"of {'; '.join(SHOWN)} [all]")
    parser.add_argument("--here", metavar="WAY", help="measure one in this process, and print it as JSON")
    arguments = parser.parse_args(argv)
    if arguments.here:
        print(json.dumps(measure(arguments.here)))
        return 0
    print("| way | compiler's cache | prepared | first image | second image |\n|---|---|---|---|---|")
    for name in arguments.ways:
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
            for cache in ("cold", "warm"):
                words = (sys.executable, "-m", "benchmarks.tokenizer.first_image", "--here", name)
                said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
                found = json.loads(said.splitlines()[-1])
                cells = (f"{found[key]:.3g} s" for key in ("prepare", "first", "second"))
                print(f"| {name} | {cache} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
