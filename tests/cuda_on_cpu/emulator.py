"""Builds csrc/cuda with g++ over the stand-ins of this folder, and runs its operators on CPU tensors.

``build(kind)`` compiles the sources as they are, but for ``kernel<<<...>>>(...)``, which is no C++ and becomes a call
of ``launch`` (shim/cuda_runtime.h). Two kinds: "races" records every access of every thread (runtime/record.cpp),
"sanitized" is the same program under AddressSanitizer; both have UndefinedBehaviorSanitizer. What is compiled is kept
in a temporary folder by the hash of what it is made of.

MAX_JOBS: as for setup.py. LAVIT_CUDA_ON_CPU_CSRC: another folder of sources. LAVIT_CUDA_ON_CPU_KINDS: of builds,
"races,sanitized" by default.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
CSRC = Path(os.environ.get("LAVIT_CUDA_ON_CPU_CSRC", HERE.parents[1] / "csrc"))
KINDS = os.environ.get("LAVIT_CUDA_ON_CPU_KINDS", "races,sanitized").split(",")
ORDERS = ("forward", "backward", "shuffled")

COMMON = ["-std=c++17", "-O1", "-g1", "-w", "-fPIE", "-fno-sanitize-recover=all"]
RUNTIME = {"races": [], "sanitized": ["-fsanitize=address"]}
KERNELS = {
    "races": ["-fsanitize=thread,undefined"],
    "sanitized": ["-fsanitize=address,undefined", "-fsanitize-sections=cuda_shared"],
}
LINK = {"races": ["-fsanitize=undefined"], "sanitized": ["-fsanitize=address,undefined"]}
LAUNCH = re.compile(r"(\b[\w:]+(?:<[\w:, ]+>)?)(\s*)<<<(.*?)>>>\(", re.DOTALL)

# The stand-in's ScalarType (shim/torch_stand_in.h), and as what its tensors come back.
ELEMENTS = {torch.bool: 1, torch.int32: 3, torch.int64: 5}
BY_SIZE = {1: 0, 2: 2, 4: 4, 8: 6, 16: 7}
DTYPES = [torch.uint8, torch.bool, torch.int16, torch.int32, torch.int32, torch.int64, torch.int64, torch.complex128]


class BuildError(RuntimeError):
    """The compiler's message."""


class Fault(AssertionError):
    """A kernel did what it must not; the message says which thread of which kernel did what, and where."""


class Refused(ValueError):
    """The operator's own check of its arguments."""


def unusable(kind: str) -> str | None:
    """Why a build cannot be made here, or None if it can."""
    cxx = shutil.which("g++")
    if cxx is None or sys.platform != "linux" or b"Free Software Foundation" not in version(cxx):
        return "they are built with GNU g++ on Linux"
    for library in ("libubsan.so", "libasan.so")[: 1 + (kind == "sanitized")]:
        asked = subprocess.run([cxx, f"-print-file-name={library}"], capture_output=True, text=True, check=True)
        if not Path(asked.stdout.strip()).is_absolute():
            return f"g++ has no {library}"
    return None


def skip_without_compiler(kind: str) -> None:
    reason = unusable(kind)
    if reason is not None:
        pytest.skip(f"the CUDA kernels do not run on the CPU: {reason}")


def as_cpp(text: str) -> str:
    return LAUNCH.sub(lambda m: f'::cuda_on_cpu::launch{{{m[3]}}}.run("{m[1]}", {m[1]}, {m[2]}', text)


@cache
def build(kind: str, csrc: Path = CSRC, extra: tuple[Path, ...] = ()) -> Path:
    """The program for a folder of sources, with further .cu files if any."""
    cxx = str(shutil.which("g++"))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for source in sorted([*csrc.glob("*.h"), *csrc.glob("cuda/*")]):
            target = work / "csrc" / source.relative_to(csrc)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(as_cpp(source.read_text()))
        for source in extra:
            (work / "csrc" / "cuda" / source.name).write_text(as_cpp(source.read_text()))
        for part in ("shim", "runtime"):
            shutil.copytree(HERE / part, work / part)
        program = work / "program"
        jobs = {}
        for source in sorted([*work.glob("csrc/cuda/*.cu"), *work.glob("runtime/*.cpp")]):
            flags = KERNELS[kind] if source.suffix == ".cu" else RUNTIME[kind]
            inputs = [*sorted(work.glob("shim/**/*.h")), *included(source)]
            jobs[source] = ([cxx, *COMMON, *flags, "-Ishim", "-x", "c++"], inputs)
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            objects = list(pool.map(lambda source: compiled(source, *jobs[source], work), jobs))
        return kept(program, [cxx, "-pie", *LINK[kind], *map(str, objects)], objects, work)


def included(source: Path) -> list[Path]:
    """A source and what it includes of its own folders."""
    found = [source.resolve()]
    for path in found:
        names = re.findall(r'#include "(.*?)"', path.read_text())
        paths = ((path.parent / name).resolve() for name in names)
        found += [p for p in dict.fromkeys(paths) if p.is_file() and p not in found]
    return found


def compiled(source: Path, command: list[str], inputs: list[Path], work: Path) -> Path:
    return kept(source, [*command, "-c", str(source.relative_to(work))], inputs, work)


def kept(name: Path, command: list[str], inputs: Sequence[Path], work: Path) -> Path:
    """What a command makes of its inputs: from the store, or made now and stored."""
    digest = hashlib.sha256(" ".join(c.split("/")[-1] for c in command).encode())
    digest.update(version(command[0]))
    for path in inputs:
        digest.update(path.name.encode() + path.read_bytes())
    store = Path(tempfile.gettempdir()) / f"lavit-cuda-on-cpu-{os.getuid()}"
    store.mkdir(mode=0o700, exist_ok=True)
    if store.stat().st_uid != os.getuid():
        raise PermissionError(f"{store}: belongs to another user")
    target = store / f"{name.stem}-{digest.hexdigest()[:24]}"
    if not target.exists():
        made = store / f"{target.name}.{os.getpid()}"
        done = subprocess.run([*command, "-o", str(made)], cwd=work, capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"{' '.join(command)}\n{done.stderr}")
        made.replace(target)
    return target


@cache
def version(cxx: str) -> bytes:
    return subprocess.run([cxx, "--version"], capture_output=True, check=True).stdout


@dataclass
class Shifted:
    """A tensor whose data begin ``bytes`` after an address that is a multiple of 64."""

    tensor: Tensor
    bytes: int


@dataclass
class Sparse:
    """A tensor too large for memory: zeros but for pieces of bytes at offsets in bytes. dtype: as of ELEMENTS."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Host:
    """A tensor that stays on the CPU."""

    tensor: Tensor


Argument = Tensor | Shifted | Sparse | Host | int | bool | None


@dataclass
class Call:
    """One call of an operator.

    races: False for contents for which no result is promised, only that nothing outside is touched. blocks: ranges of
    the blocks that run, all by default. reads: (result, offset, bytes) that are wanted instead of whole results.
    """

    operator: str
    arguments: Sequence[Argument]
    processors: int = 3
    races: bool = True
    device: int = 0
    blocks: Sequence[tuple[int, int]] = ()
    reads: Sequence[tuple[int, int, int]] = ()

    def encoded(self, order: str, seed: int) -> bytes:
        parts = [f"case {self.operator} {order} {seed} {self.processors} {int(self.races)}\n".encode()]
        if self.blocks:
            ranges = " ".join(f"{a} {b}" for a, b in self.blocks)
            parts.append(f"blocks {len(self.blocks)} {ranges}\n".encode())
        parts += [self._argument(a) for a in self.arguments]
        parts += [f"read {r} {offset} {n}\n".encode() for r, offset, n in self.reads]
        return b"".join([*parts, b"go\n"])

    def _argument(self, a: Argument) -> bytes:
        if a is None:
            return b"none\n"
        if isinstance(a, int):
            return f"number {int(a)}\n".encode()
        if isinstance(a, Sparse):
            head = f"sparse {self.device} {ELEMENTS.get(a.dtype, BY_SIZE[a.dtype.itemsize])} {len(a.pieces)} "
            head += f"{len(a.shape)} {' '.join(map(str, a.shape))}\n"
            return head.encode() + b"".join(f"{at} {len(b)}\n".encode() + b + b"\n" for at, b in a.pieces.items())
        tensor, shift, device = a, 0, self.device
        if isinstance(a, Shifted):
            tensor, shift = a.tensor, a.bytes
        elif isinstance(a, Host):
            tensor, device = a.tensor, -1
        assert isinstance(tensor, Tensor)
        element = ELEMENTS.get(tensor.dtype, BY_SIZE[tensor.dtype.itemsize])
        head = f"tensor {device} {element} {shift} {tensor.dim()} {' '.join(map(str, tensor.shape))}\n"
        return head.encode() + as_bytes(tensor) + b"\n"


def as_bytes(x: Tensor) -> bytes:
    return x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""


def explained(message: str, program: Path) -> str:
    """With the lines of the sources for the addresses in brackets."""
    found = re.findall(r"\[(0x[0-9a-f]+)\]", message)
    if not found or shutil.which("addr2line") is None:
        return message
    command = ["addr2line", "-e", str(program), *(hex(int(a, 16) - 1) for a in found)]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
    for address, line in zip(found, lines, strict=False):
        message = message.replace(f"[{address}]", f"[{line.split('/csrc/')[-1].split(' ')[0]}]")
    return message


def run(program: Path, calls: Sequence[Call], order: str, seed: int = 0) -> list[list[Tensor] | list[bytes] | Refused]:
    """The results of every call, in one process. Raises Fault where a kernel touches what it must not."""
    done = subprocess.run(
        [str(program)],
        input=b"".join(call.encoded(order, seed) for call in calls),
        capture_output=True,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"},
        timeout=200,
    )
    if done.returncode:
        text = done.stderr.decode(errors="replace")
        raise Fault(f"{order}: status {done.returncode}: {explained(text, program) or 'no message'}")
    out, at = [], 0
    for call in calls:
        line, at = _line(done.stdout, at)
        if line.startswith("refused"):
            out.append(Refused(line.removeprefix("refused ")))
            continue
        results = []
        for _, _, n in call.reads:
            results.append(done.stdout[at : at + n])
            at += n
        for _ in range(0 if call.reads else int(line.split()[1])):
            line, at = _line(done.stdout, at)
            element, _, *shape = map(int, line.split()[1:])
            dtype = DTYPES[element]
            n = torch.Size(shape).numel() * dtype.itemsize
            raw = bytearray(done.stdout[at : at + n])
            results.append((torch.frombuffer(raw, dtype=dtype) if n else torch.empty(0, dtype=dtype)).reshape(shape))
            at += n
        out.append(results)
    assert at == len(done.stdout)
    return out


def _line(text: bytes, at: int) -> tuple[str, int]:
    end = text.index(b"\n", at)
    return text[at:end].decode(), end + 1
