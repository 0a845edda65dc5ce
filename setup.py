"""Compiles csrc/ into lavit/_C.abi3.so; everything else is in pyproject.toml.

The compilers are called directly. torch's CUDAExtension would refuse a CPU-only torch and link its CUDA libraries; the
sources use only LibTorch's stable ABI, whose headers every torch has, so one library serves every torch from 2.10 on,
with a GPU or without.

LAVIT_BUILD=auto (default): what the machine can compile; a part that cannot be built is left out with one line.
LAVIT_BUILD=cpu: without the CUDA kernels. LAVIT_BUILD=0: nothing. LAVIT_BUILD=require: fail instead of leaving out.
TORCH_CUDA_ARCH_LIST: architectures of the CUDA kernels; by default those of this machine's GPUs, else 8.0;9.0+PTX.
CXX, CUDACXX, CUDA_HOME: compilers other than those on PATH. MAX_JOBS: compilations at a time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
LIBRARY = Path("lavit") / "_C.abi3.so"
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"
COMMON_FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-DTORCH_TARGET_VERSION=0x020a000000000000"]


class BuildError(Exception):
    """A part of the extension that cannot be built; the message is the one line that the user gets."""


def say(message: str) -> None:
    """One line to the user. pip shows what a build prints only with -v, so it also goes to the terminal, if any."""
    line = f"lavit: {message}"
    print(line, file=sys.stderr, flush=True)
    try:
        with open("/dev/tty", "w") as terminal:
            print(line, file=terminal)
    except OSError:
        pass


def torch_directory() -> Path:
    """Where torch lies: importable here, or in the environment that is being installed into. It is not imported."""
    sys.path.insert(0, str(ROOT / "_build"))
    from lavit_backend import installed_torch, target_path

    for path in (sys.path, target_path()):
        if installed_torch(path):
            for entry in path:
                if (Path(entry) / "torch" / "include").is_dir():
                    return Path(entry) / "torch"
    raise BuildError("no torch >= 2.10 to compile against, installing pure Python: a second installation will find it")


def find_cxx() -> str:
    for name in filter(None, (os.environ.get("CXX"), "g++", "c++", "clang++")):
        found = shutil.which(name.split()[0])
        if found:
            return found
    raise BuildError("no C++ compiler found, installing pure Python: everything works, packing is slower")


def find_nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [os.environ.get("CUDACXX"), "nvcc", *(str(Path(home) / "bin" / "nvcc") for home in homes if home)]
    return next((found for c in candidates if c and (found := shutil.which(c))), None)


def architectures() -> list[str]:
    """Compute capabilities such as "9.0" or "9.0+PTX"."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST") or machine_architectures() or DEFAULT_ARCHITECTURES
    return asked.replace(";", " ").replace(",", " ").split()


def machine_architectures() -> str:
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return ""
    return ";".join(sorted({a for a in answer if re.fullmatch(r"\d+\.\d", a)}))


def gencode(architectures: list[str]) -> list[str]:
    """nvcc's flags: machine code for every architecture, PTX as well where "+PTX" asks for it."""
    flags = []
    for architecture in architectures:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", architecture)
        if match is None:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST: expected entries like 9.0 or 9.0+PTX, got {architecture!r}")
        number = match[1] + match[2] + match[3]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def run(command: list[str], what: str) -> None:
    print(" ".join(command), file=sys.stderr, flush=True)
    result = subprocess.run(command, capture_output=True, text=True)
    sys.stderr.write(result.stdout + result.stderr)
    if result.returncode:
        errors = [line for line in (result.stdout + result.stderr).splitlines() if "error" in line.lower()]
        raise BuildError(f"{what} failed: {errors[0].strip() if errors else f'exit status {result.returncode}'}")


def compile_all(commands: dict[Path, list[str]], folder: Path) -> list[str]:
    """Run each command with ``-c source -o object`` appended; returns the objects."""
    objects = {source: folder / f"{source.parent.name}_{source.name}.o" for source in commands}
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        jobs = [
            pool.submit(run, [*command, "-c", str(source), "-o", str(objects[source])], f"compiling {source.name}")
            for source, command in commands.items()
        ]
        for job in jobs:
            job.result()
    return [str(o) for o in objects.values()]


def build(target: Path, folder: Path, mode: str) -> str:
    """Build the library at ``target``; returns what was built, in words."""
    if sys.platform not in ("linux", "darwin"):
        raise BuildError(f"no recipe to compile on {sys.platform}, installing pure Python")
    cxx = find_cxx()
    torch = torch_directory()
    include = ["-isystem", str(torch / "include")]
    folder.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    if sys.platform == "darwin":
        libraries += ["-undefined", "dynamic_lookup"]

    cxx_flags = [cxx, *COMMON_FLAGS, "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", *include]
    sources = [CSRC / "library.cpp", *sorted((CSRC / "cpu").glob("*.cpp"))]
    objects = compile_all({source: cxx_flags for source in sources}, folder)

    nvcc = None if mode == "cpu" else find_nvcc()
    if nvcc:
        try:
            wanted = architectures()
            nvcc_flags = [nvcc, *COMMON_FLAGS, "-ccbin", cxx, "-Xcompiler=-fPIC,-fvisibility=hidden", *include]
            commands = {source: [*nvcc_flags, *gencode(wanted)] for source in sorted((CSRC / "cuda").glob("*.cu"))}
            cuda_objects = compile_all(commands, folder)
            # libtorch_cuda and libc10_cuda stay out: a library that needs them does not load on a CPU-only torch.
            link = [nvcc, "-ccbin", cxx, "-shared", "-cudart", "static", "-Xlinker", "--as-needed"]
            run([*link, "-o", str(target), *objects, *cuda_objects, *libraries], "linking")
            return f"C++ and CUDA kernels ({';'.join(wanted)})"
        except BuildError as error:
            if mode == "require":
                raise
            say(f"building without CUDA kernels: {error}")
    as_needed = ["-Wl,--as-needed"] if sys.platform == "linux" else []
    run([cxx, "-shared", "-o", str(target), *as_needed, *objects, *libraries], "linking")
    return "C++ kernels" + ("" if nvcc or mode == "cpu" else ", no CUDA kernels (no nvcc)")


class BuildLibrary(build_ext):
    """setuptools decides where the library goes; how it is made is told above."""

    def run(self) -> None:
        if self.inplace:  # the source tree holds the library; an earlier build's must not pass for this one's
            (ROOT / LIBRARY).unlink(missing_ok=True)
        super().run()

    def get_ext_filename(self, fullname: str) -> str:
        """One name for every Python; asked with the package's name and without."""
        return os.path.join(*fullname.split(".")) + ".abi3.so"

    def build_extension(self, ext: Extension) -> None:
        mode = os.environ.get("LAVIT_BUILD") or "auto"
        if mode not in ("auto", "cpu", "0", "require"):
            raise SystemExit(f"LAVIT_BUILD: expected auto, cpu, 0 or require, got {mode!r}")
        target = Path(self.get_ext_fullpath(ext.name))
        if mode == "0":
            say("LAVIT_BUILD=0, installing pure Python")
            return
        try:
            say(f"built {build(target.resolve(), Path(self.build_temp).resolve(), mode)}")
        except BuildError as error:
            if mode == "require":
                raise SystemExit(f"lavit: {error}") from None
            say(str(error))


if __name__ == "__main__":
    setup(
        # The library registers operators and has no Python module in it; the limited API is a promise about its name.
        ext_modules=[Extension("lavit._C", sources=[], py_limited_api=True, optional=True)],
        cmdclass={"build_ext": BuildLibrary},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
