"""``python -m benchmarks.sweep``: which tile of nearest_code's table is fastest on this GPU, at every batch size.

Every configuration of kernels/nearest_code/triton.py, K = 16384 codes of dimension 32; ids are checked before a time
is taken, and the fastest configuration with the right ids is marked. Exits with 2 without a GPU that Triton serves.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from timeit import timeit
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import median_seconds
from lavit import __version__
from lavit.kernels.triton_support import triton_unusable

CODES, WIDTH = 16384, 32
SIZES = (640, 5440, 65536)


def right(ids: Tensor, x: Tensor, codebook: Tensor) -> tuple[bool, float]:
    """Whether every id is float64's but for float32's rounding of 32 terms of at most 4, and how many are others."""
    z, c = torch.nn.functional.normalize(x.double(), dim=1), codebook.double()
    want = torch.cat([(rows @ c.T).argmax(1) for rows in z.split(4096)])
    gap = ((c[want] - c[ids.clamp(min=0)]) * z).sum(1)
    passed = bool((ids >= 0).all()) and float(gap.max()) <= 2 * WIDTH * torch.finfo(torch.float32).eps
    return passed, float((ids != want).double().mean())


def sweep(device: torch.device, codes: int = CODES, sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    """One entry for every precision, size and configuration, in seconds; a failing one has an error instead. On a CPU,
    in Triton's interpreter, the times say nothing."""
    module = importlib.import_module("lavit.kernels.nearest_code.triton")
    generator = torch.Generator().manual_seed(0)
    codebook = torch.nn.functional.normalize(torch.randn(codes, WIDTH, generator=generator), dim=1).to(device)
    vectors = torch.randn(max(sizes), WIDTH, generator=generator).to(device)
    entries: list[dict[str, Any]] = []
    for precision in ("exact", "fast"):
        for name, config in module.CONFIGS.items():
            for n in sizes:
                x = vectors[:n]
                entry: dict[str, Any] = {"precision": precision, "n": n, "config": name}

                def run(x: Tensor = x, precision: str = precision, config: Any = config) -> Any:
                    return module.nearest_code(x, codebook, "cosine", True, precision, config=config)

                try:
                    passed, disagreement = right(run()[0], x, codebook)
                    entry |= {"passed": passed, "disagreement": disagreement}
                    if passed or precision == "fast":
                        timed = median_seconds(run, device) if device.type == "cuda" else timeit(run, number=1)
                        entry |= {"seconds": timed, "scores_per_second": n * codes / timed}
                except Exception as error:
                    entry["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                print(line(entry), flush=True)
                entries.append(entry)
    mark_best(entries)
    return entries


def mark_best(entries: list[dict[str, Any]]) -> None:
    """The fastest of every precision and size; for the exact one only among those whose ids were right."""
    for entry in entries:
        entry["best"] = False
    timed = [e for e in entries if "seconds" in e]
    for key in {(e["precision"], e["n"]) for e in timed}:
        min((e for e in timed if (e["precision"], e["n"]) == key), key=lambda e: e["seconds"])["best"] = True


def line(entry: dict[str, Any]) -> str:
    where = f"{entry['precision']:6}n={entry['n']:<7}{entry['config']:18}"
    if "error" in entry:
        return f"{where}{entry['error']}"
    verdict = f"disagrees {entry['disagreement']:.3%}"
    if "seconds" not in entry:
        return f"{where}wrong ids, no time; {verdict}"
    best = "  best" if entry.get("best") else ""
    return f"{where}{entry['seconds'] * 1e6:9.1f} µs  {entry['scores_per_second']:.3g} scores/s  {verdict}{best}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__.partition(": ")[2])
    parser.add_argument("--json", type=Path, metavar="F", help="write the figures to this file too")
    parser.add_argument("--dry", action="store_true", help="few codes in Triton's interpreter: to see that it works")
    options = parser.parse_args(argv)
    device = torch.device("cpu" if options.dry else "cuda")
    reason = triton_unusable(device.type)
    if reason is not None:
        print(f"nothing to sweep here: {reason}", file=sys.stderr)
        return 2
    entries = sweep(device, 64, (8,)) if options.dry else sweep(device)
    print("\n".join(line(e) for e in entries if e["best"]))
    if options.json:
        import triton

        versions = {"torch": torch.__version__, "triton": triton.__version__, "lavit": __version__}
        versions["device"] = "cpu" if options.dry else torch.cuda.get_device_name()
        report = {**versions, "codes": CODES, "width": WIDTH, "entries": entries}
        options.json.write_text(json.dumps(report, indent=1))
    exact_failed = [e for e in entries if "error" in e or (e["precision"] == "exact" and not e["passed"])]
    return 1 if exact_failed else 0


if __name__ == "__main__":
    sys.exit(main())
