"""What is run on a machine with a GPU, in which order and for how long: cheap before dear, what matters first."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from benchmarks.gpu.runner import Command

ROOT = Path(__file__).parents[2]
TOTAL = 350.0
"""Seconds for either call: six minutes with a margin for what starts and ends it."""
PYTHON = os.environ.get("PYTHON", sys.executable)
# Not strict, and no options of the project's: pytest-timeout, whose setting and mark the tests have, may be missing.
PYTEST = (PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.record", "-o", "addopts=-ra")
SLOWER = 5
"""Times that a dry run may take as long: a CPU has no such speed."""
BUILT = "import sys; from lavit.kernels.extension import extension; sys.exit('cuda' not in extension().devices)"
NOTHING = {5: "nothing to run"}  # pytest's status where it has collected no test

BENCHMARKS: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("nearest code", 60, ("kernels/bench_nearest_code.py",)),
    ("merging attention", 60, ("kernels/bench_varlen_attention.py", "kernels/bench_policy_attention.py")),
    ("merger", 60, ("tokenizer/bench_merger.py",)),
    ("packing", 60, ("kernels/bench_pack.py", "kernels/bench_partition.py", "kernels/bench_assemble_sequences.py")),
    ("encode end to end", 60, ("tokenizer/bench_encode.py",)),
    ("image to tokens", 60, ("tokenizer/bench_image_to_tokens.py",)),
    ("accelerated release", 60, ("acceleration/bench_accelerate.py",)),
    ("stage-1 step", 60, ("tokenizer/bench_training.py",)),
    ("stage-2 step", 60, ("language/bench_training.py",)),
    ("decode", 60, ("language/bench_sampling.py",)),
    ("selection and statistics", 40, ("kernels/bench_gumbel_select.py", "kernels/bench_code_statistics.py")),
    ("loss", 40, ("language/bench_loss.py",)),
    ("text to image", 60, ("pixels/bench_text_to_image.py",)),
    ("folders to tokens", 60, ("commands/bench_tokenize.py",)),
)
"""In the order of importance: (name, seconds, files)."""

SANITIZED = ("partition", "pack", "pad", "assemble_sequences")
SANITIZED_TESTS = "gpu_equals or touch_nothing"


def versions(dry: bool) -> Command:
    """Its last line is JSON."""
    words = (PYTHON, "-m", "benchmarks.gpu.versions")
    return Command("device and versions", words, 60, statuses={1: "no GPU"} if dry else {})


def wheels(dry: bool) -> list[Command]:
    """None where there is nothing to install."""
    if not (files := wheels_to_install()):
        return []
    flags = ("--no-deps", "--no-index", "--no-cache-dir", *(("--dry-run",) if dry else ()))
    return [Command("wheels", (PYTHON, "-m", "pip", "install", *flags, *files), 60)]


def build(dry: bool) -> Command:
    """torch and triton stay as they are. A dry run prepares the build and leaves what is installed."""
    flags = ("--no-deps", "--no-build-isolation", *(("--dry-run",) if dry else ()))
    return Command("build", (PYTHON, "-m", "pip", "install", "-e", ".", *flags), 150)


def is_built() -> Command:
    return Command("already built?", (PYTHON, "-c", BUILT), 60, statuses={1: "not yet"})


def wheels_to_install() -> list[str]:
    """Those of the folder WHEELS, but for torch and triton."""
    folder = os.environ.get("WHEELS")
    if not folder:
        return []
    kept = ("torch-", "triton-", "pytorch_triton-")
    return sorted(str(file) for file in Path(folder).glob("*.whl") if not file.name.startswith(kept))


def operations() -> list[Path]:
    """The files that hold tests for a GPU, the kernels' first."""
    files = [file for file in (ROOT / "tests").rglob("test_*.py") if "gpu" in file.read_text()]
    return sorted(files, key=lambda file: (file.parent.name != "kernels", str(file)))


def tests_of(file: Path, record: Path, limit: float = 150) -> Command:
    name = str(file.relative_to(ROOT))
    words = (*PYTEST, "-m", "gpu", name)
    # Triton compiles within a test: half a minute may pass without a word.
    return Command(name, words, limit, record=record, quiet=60, statuses=NOTHING)


def sanitized(records: Path) -> list[Command]:
    """Every access of the C++ extension's kernels to memory, each tensor in an allocation of its own; their races."""
    tool = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:{cuda_home()}/bin")
    if tool is None:
        return []
    files = [f"tests/kernels/test_{name}.py" for name in SANITIZED]
    return [
        Command(
            f"compute-sanitizer {check}",
            (tool, "--tool", check, "--error-exitcode", "9", "--kernel-regex", "kns=lavit")
            + (*PYTEST, "-m", "gpu", "-k", SANITIZED_TESTS, *files),
            60,
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            records / f"{check}.jsonl",
        )
        for check in ("memcheck", "racecheck")
    ]


def cuda_home() -> str:
    return os.environ.get("CUDA_HOME", "/usr/local/cuda")


def benchmark_of(number: int, folder: Path, dry: bool) -> Command:
    """Writes `folder`/NN-name.json. A dry run measures on the CPU, each case once."""
    name, limit, files = BENCHMARKS[number]
    words = (*PYTEST, *(f"benchmarks/{file}" for file in files), "--benchmark-only", "--benchmark-json")
    words = (*words, str(report_of(number, folder)))
    record, environment = folder / f".{number}.jsonl", {"LAVIT_DRY": "1"} if dry else {}
    return Command(name, words, limit * (SLOWER if dry else 1), environment, record, statuses=NOTHING)


def report_of(number: int, folder: Path) -> Path:
    return folder / f"{number + 1:02}-{BENCHMARKS[number][0].replace(' ', '-')}.json"


def sweep(folder: Path, dry: bool) -> Command:
    words = (PYTHON, "-m", "benchmarks.sweep", "--json", str(folder / "sweep.json"), *(("--dry",) if dry else ()))
    environment = {"TRITON_INTERPRET": "1"} if dry else {}
    return Command("configurations of nearest_code", words, 60, environment)
