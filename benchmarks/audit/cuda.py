"""The CUDA kernels of csrc/, compiled by nvcc; ptxas reports registers, spilled bytes and shared memory of each."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from benchmarks.audit.row import Row

ROOT = Path(__file__).resolve().parents[2]


def find_nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def demangle(names: list[str]) -> dict[str, str]:
    """Mangled to readable, without namespaces and arguments."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    plain = subprocess.run([tool, *names], capture_output=True, text=True, check=True).stdout.splitlines()
    short = [re.sub(r"lavit::cuda::|\(anonymous namespace\)::|_GLOBAL__N__\w+::|\(.*\)$|^void ", "", p) for p in plain]
    return dict(zip(names, short, strict=True))


def compile_report(nvcc: str, source: Path, architecture: int, folder: Path) -> str:
    """ptxas's report for one source and architecture; raises RuntimeError with the compiler's words if it fails."""
    import torch

    include = Path(torch.__file__).parent / "include"
    command = [nvcc, "-std=c++17", "-O3", "-DNDEBUG", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-Xptxas=-v"]
    command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-isystem", str(include), "-cubin"]
    command += ["-o", str(folder / f"{source.stem}_{architecture}.cubin"), str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{source.name} for sm_{architecture} does not compile:\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def parse(report: str, source: str, architecture: int) -> Iterator[Row]:
    """The kernels of one report of ptxas."""
    for block in re.split(r"ptxas info\s+: Compiling entry function ", report)[1:]:
        name = re.match(r"'(\w+)'", block)
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", block)
        registers = re.search(r"Used (\d+) registers", block)
        shared = re.search(r"(\d+) bytes smem", block)
        stack = re.search(r"(\d+) bytes stack frame", block)
        if name is None or spills is None or registers is None or stack is None:
            raise ValueError(f"{source}: ptxas's report is not understood:\n{block}")
        spilled = int(spills[1]) + int(spills[2])
        sizes = int(registers[1]), int(stack[1]), spilled, int(shared[1]) if shared else 0
        yield Row(source, name[1], "", architecture, *sizes)


def audit(nvcc: str, architectures: tuple[int, ...], workers: int) -> list[Row]:
    """One row for every kernel of csrc/ and architecture."""
    sources = sorted((ROOT / "csrc").rglob("*.cu"))
    jobs = [(source, architecture) for source in sources for architecture in architectures]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        reports = pool.map(lambda job: compile_report(nvcc, job[0], job[1], Path(folder)), jobs)
        rows = [row for (s, a), report in zip(jobs, reports, strict=True) for row in parse(report, s.name, a)]
    readable = demangle(sorted({row.kernel for row in rows}))
    return [replace(row, kernel=readable[row.kernel]) for row in rows]
