"""``python -m benchmarks.audit``: registers, spills, shared memory and tensor-core instructions of every GPU kernel.

Compiles the Triton kernels (kernels/*/triton.py, every tile; ``--every``: every class of widths and dtype too) and,
where nvcc is, the CUDA kernels of csrc/ for sm_80, sm_90 and sm_100. Needs no GPU. Fails on a spill (but for the few
bytes that ptxas gives for another block), on a kernel that was meant to use tensor cores and does not, on one that
wants more shared memory than there is, and on a Triton kernel that is not listed. ``--triton 3.6.0`` does it with that
version.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.audit import cuda
from benchmarks.audit.row import ARCHITECTURES, SMALLER, Row, table

KERNELS = cuda.ROOT / "kernels"


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__.partition(": ")[2])
    add = parser.add_argument
    add("--only", metavar="OP", action="append", help="Triton kernels of this operation alone; may be repeated")
    add("--module", metavar="M", action="append", default=[], help="also audit this importable module's variants()")
    add("--arch", type=int, action="append", choices=ARCHITECTURES + SMALLER, help="this one alone; may be repeated")
    add("--every", action="store_true", help="all that the launchers can choose: all classes of widths, all dtypes")
    add("--skip-cuda", action="store_true", help="leave the CUDA kernels of csrc/ out")
    add("--jobs", type=int, default=2, metavar="N", help="compilations at a time [2]")
    add("--triton", metavar="V", help="with this version of triton, which pip installs into a temporary folder")
    add("--json", type=Path, metavar="F", help="write the table to this file too")
    return parser.parse_args(argv)


def audit_triton(chosen: argparse.Namespace, architectures: tuple[int, ...]) -> tuple[list[Row], list[str]]:
    from benchmarks.audit import triton

    names = chosen.only
    if names is None:
        names = [] if chosen.module else sorted(p.parent.name for p in KERNELS.glob("*/triton.py"))
    modules = [triton.audited_module(name, KERNELS) for name in names] + chosen.module
    lost = {
        "cuobjdump": "registers and stack are not shown",
        "nvdisasm": "tensor-core instructions are counted in PTX, and any stack counts as a spill",
    }
    missing = [name for name in lost if triton.tool(name) is None]
    for name in missing:
        print(f"Triton: no {name} beside triton, on PATH or in /usr/local/cuda/bin: {lost[name]}", file=sys.stderr)
    if len(missing) == len(lost):
        return [], ["Triton: without cuobjdump and nvdisasm no spill can be seen"]
    return triton.audit(modules, architectures, chosen.jobs, chosen.every)


def with_triton(version: str, words: list[str]) -> int:
    """The audit in a process that finds another triton first; torch and all else are what they are."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = ["--no-deps", "--only-binary", ":all:", "--target", folder, f"triton=={version}"]
        if status := subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted]).returncode:
            return status
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "benchmarks.audit", *words]
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode


def main(argv: list[str] | None = None) -> int:
    chosen = options(argv)
    if chosen.triton is not None:
        words = list(sys.argv[1:] if argv is None else argv)
        at = next(i for i, word in enumerate(words) if word.partition("=")[0] == "--triton")
        return with_triton(chosen.triton, words[:at] + words[at + (1 if "=" in words[at] else 2) :])
    architectures = tuple(chosen.arch or ARCHITECTURES)
    rows: list[Row] = []
    problems: list[str] = []
    versions: dict[str, str | None] = {"triton": None}
    try:
        import triton

        versions["triton"] = triton.__version__
        with tempfile.TemporaryDirectory() as folder:
            os.environ.setdefault("TRITON_CACHE_DIR", folder)
            # As up to triton 3.9; later ones contract to fused multiply-adds only where a launch asks for it.
            os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
            rows, problems = audit_triton(chosen, architectures)
    except ImportError as error:
        problems.append(f"Triton: {error}")
    except ValueError as error:
        problems.append(str(error))
    print(f"Triton {versions['triton']}: {len(rows)} compilations")
    nvcc = None if chosen.skip_cuda else cuda.find_nvcc()
    if nvcc is not None:
        compiled = cuda.audit(nvcc, architectures, chosen.jobs)
        if not compiled:
            problems.append("CUDA: no kernel in csrc/")
        print(f"CUDA: {len(compiled)} compilations of csrc/")
        rows += compiled
    else:
        print("CUDA: left out, as asked" if chosen.skip_cuda else "CUDA: no nvcc, csrc/ was not compiled")
    if rows:
        print(table(rows))
    problems += [problem for row in rows for problem in row.problems()]
    if chosen.json:
        report = {**versions, "rows": [asdict(row) for row in rows], "problems": problems}
        chosen.json.write_text(json.dumps(report, indent=1))
    for problem in problems:
        print(problem, file=sys.stderr)
    bargains = [row for row in rows if row.bargain]
    for row in bargains:
        print(f"{row.where} spills {row.spilled} bytes to stay at {row.registers} registers", file=sys.stderr)
    few = f"few spilled bytes for another block in {len(bargains)}" if bargains else "no spill"
    verdict = f"{len(problems)} problems" if problems else f"{few}, and tensor cores where meant"
    print(f"{', '.join(f'sm_{a}' for a in architectures)}: {verdict}")
    return 1 if problems else 0


if __name__ == "__main__":
    if os.environ.pop("TRITON_INTERPRET", "0") == "1":
        # Triton chooses between compiler and interpreter when it is imported, for the whole process.
        print("TRITON_INTERPRET=1 is set: starting again without it, to audit the compiler", flush=True)
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.audit", *sys.argv[1:]])
    sys.exit(main())
