"""``python -m benchmarks.audit``: what the compilers make of the GPU kernels; needs no GPU.

Compiles every CUDA kernel of csrc/ for sm_80, sm_90 and sm_100 when nvcc is there, prints registers, spilled bytes and
shared memory of each, and fails on a spill. Triton kernels (kernels/*/triton.py) are audited likewise.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Kernel:
    """What ptxas reports of one kernel on one architecture; sizes in bytes."""

    source: str
    name: str
    architecture: int
    registers: int
    spilled: int
    shared: int


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
    include = Path(torch.__file__).parent / "include"
    command = [nvcc, "-std=c++17", "-O3", "-DNDEBUG", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-Xptxas=-v"]
    command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-isystem", str(include), "-cubin"]
    command += ["-o", str(folder / f"{source.stem}_{architecture}.cubin"), str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{source.name} for sm_{architecture} does not compile:\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def parse(report: str, source: str, architecture: int) -> Iterator[Kernel]:
    """The kernels of one report of ptxas."""
    for block in re.split(r"ptxas info\s+: Compiling entry function ", report)[1:]:
        name = re.match(r"'(\w+)'", block)
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", block)
        registers = re.search(r"Used (\d+) registers", block)
        shared = re.search(r"(\d+) bytes smem", block)
        if name is None or spills is None or registers is None:
            raise ValueError(f"{source}: ptxas's report is not understood:\n{block}")
        spilled = int(spills[1]) + int(spills[2])
        yield Kernel(source, name[1], architecture, int(registers[1]), spilled, int(shared[1]) if shared else 0)


def audit_cuda(nvcc: str) -> list[Kernel]:
    sources = sorted((ROOT / "csrc").rglob("*.cu"))
    jobs = [(source, architecture) for source in sources for architecture in ARCHITECTURES]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        reports = pool.map(lambda job: compile_report(nvcc, job[0], job[1], Path(folder)), jobs)
        kernels = [k for (s, a), report in zip(jobs, reports, strict=True) for k in parse(report, s.name, a)]
    readable = demangle(sorted({k.name for k in kernels}))
    return [Kernel(k.source, readable[k.name], k.architecture, k.registers, k.spilled, k.shared) for k in kernels]


def print_table(kernels: list[Kernel]) -> None:
    width = max(len(k.name) for k in kernels)
    print(f"{'source':14}{'kernel':{width}}    arch  registers  spilled  shared")
    for k in kernels:
        print(f"{k.source:14}{k.name:{width}}  {f'sm_{k.architecture}':>6} {k.registers:10} {k.spilled:8} {k.shared:7}")


def main() -> int:
    triton = sorted((ROOT / "kernels").glob("*/triton.py"))
    if triton:
        print(f"Triton kernels without an audit: {', '.join(p.parent.name for p in triton)}", file=sys.stderr)
        return 1
    print("Triton: no operation has a triton.py, nothing to audit")
    nvcc = find_nvcc()
    if nvcc is None:
        print("CUDA: no nvcc, the kernels of csrc/ were not compiled")
        return 0
    kernels = audit_cuda(nvcc)
    print_table(kernels)
    spilling = [k for k in kernels if k.spilled]
    for k in spilling:
        print(f"{k.source}: {k.name} spills {k.spilled} bytes on sm_{k.architecture}", file=sys.stderr)
    print(f"CUDA: {len(kernels)} kernels for {', '.join(f'sm_{a}' for a in ARCHITECTURES)}, {len(spilling)} spill")
    return 1 if spilling or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
