"""Changes the kernels one line at a time and asks whether the tests notice: ``python tests/cuda_on_cpu/mutate.py``.

mutants.json lists the changes; each run writes the name of the first test that failed beside it, or null for a change
that nothing noticed, and exits with 1 if there is one.
Takes about 20 minutes, so it is not among the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch  # noqa: F401  the forked processes find it imported

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIST = HERE / "mutants.json"
ROWS = ["hostile", "rows", "far"]
TESTS = {
    "scan.cuh": ["partition", "assemble"],
    "partition.cu": ["partition"],
    "rows.cuh": ROWS,
    "pack.cu": ROWS,
    "pad.cu": ROWS,
    "assemble_sequences.cu": ["assemble", "hostile"],
    "launch.h": ["partition"],
}


class FirstFailure:
    """A plugin of pytest that keeps the name of the first test that failed."""

    name: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.name is None:
            self.name = Path(report.fspath).stem + "::" + report.location[2].split("[")[0]
            if "emulator.BuildError" in report.longreprtext:
                self.name = "it does not compile\n" + report.longreprtext


def first_failure(csrc: Path, files: list[str], store: Path) -> str | None:
    """The first test that fails on these sources, or None. In a process of its own: the tests read the environment."""
    os.environ |= {"LAVIT_CUDA_ON_CPU_CSRC": str(csrc), "LAVIT_CUDA_ON_CPU_KINDS": "races"}
    tempfile.tempdir = str(store)
    tests = dict.fromkeys(f"test_cuda_{name}.py" for file in files for name in TESTS[Path(file).name])
    first = FirstFailure()
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *(str(HERE / t) for t in tests)], plugins=[first])
    if first.name is None and status != 0:
        return f"pytest ended with {status}"
    return first.name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="those whose file or change contains this")
    parser.add_argument("--survivors", action="store_true", help="those that nothing has caught yet")
    asked = parser.parse_args()
    mutants = json.loads(LIST.read_text())
    # Forked, so that torch is imported once.
    processes = get_context("fork").Pool(1, maxtasksperchild=1)
    with tempfile.TemporaryDirectory() as folder, processes:
        store = Path(folder) / "store"
        store.mkdir()
        for mutant in mutants:
            if asked.only not in mutant["file"] + mutant["old"] + mutant["new"]:
                continue
            if asked.survivors and mutant.get("caught_by"):
                continue
            csrc = Path(folder) / "csrc"
            shutil.rmtree(csrc, ignore_errors=True)
            shutil.copytree(ROOT / "csrc", csrc)
            path = csrc / mutant["file"]
            text = path.read_text()
            if text.count(mutant["old"]) != 1:
                raise SystemExit(f"{mutant['file']}: expected once, found {text.count(mutant['old'])}: {mutant['old']}")
            path.write_text(text.replace(mutant["old"], mutant["new"]))
            caught_by = processes.apply(first_failure, (csrc, [mutant["file"]], store))
            if caught_by is not None and "::" not in caught_by.split("\n")[0]:
                raise SystemExit(f"{mutant}: {caught_by}")
            mutant["caught_by"] = caught_by
            print(f"{caught_by or 'SURVIVED'}: {mutant['file']}: {mutant['old']!r} -> {mutant['new']!r}", flush=True)
            LIST.write_text(json.dumps(mutants, indent=1) + "\n")
        failed = processes.apply(first_failure, (ROOT / "csrc", list(TESTS), store))
        if failed:
            raise SystemExit(f"none of this counts: the unchanged kernels fail {failed}")
    caught = sum(m.get("caught_by") is not None for m in mutants)
    print(f"{caught} of {len(mutants)} caught")
    return int(caught < len(mutants))


if __name__ == "__main__":
    sys.exit(main())
