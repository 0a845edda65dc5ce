"""One-line changes of the Triton kernels, each of which some test must notice.

    python tests/triton_mutants/run.py [LIST.toml ...] [--only WORD] [--json FILE]

Every list beside this file is a table ``[[mutant]]`` of: name; file, below kernels/; old, which the file must hold
once, and new; tests, the arguments for pytest that name the fitting tests, run with Triton's interpreter on a copy of
the package. ``equivalent``, instead of tests, is the argument why no test can notice. Needs Python 3.11 (tomllib).
Fails where a mutant survives, or where the tests fail on the kernels as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SECONDS = 300  # a mutant that takes longer does not end: it is noticed
COPIED = ("kernels", "lavit", "tests/kernels", "tests/golden", "tests/conftest.py", "pyproject.toml")


def read(path: Path) -> list[dict[str, Any]]:
    """The mutants of a list. Raises ValueError for one that is not described as it must be."""
    import tomllib

    mutants = tomllib.loads(path.read_text())["mutant"]
    names = [m["name"] for m in mutants]
    for mutant in mutants:
        where = f"{path.name}: {mutant['name']}"
        if names.count(mutant["name"]) > 1:
            raise ValueError(f"{where}: expected another name for each mutant, got it twice")
        if ("tests" in mutant) == ("equivalent" in mutant):
            raise ValueError(f"{where}: expected either tests or equivalent, got {sorted(mutant)}")
        found = (ROOT / "kernels" / mutant["file"]).read_text().count(mutant["old"])
        if found != 1:
            raise ValueError(f"{where}: expected old once in {mutant['file']}, got it {found} times")
    return mutants


def copy(to: Path) -> None:
    """What the tests need. ``lavit/kernels`` is a link beside its target, as in the repository."""
    for name in COPIED:
        source, target = ROOT / name, to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)


def fails(folder: Path, tests: list[str]) -> bool:
    """Whether one of the tests fails on the copy. Raises RuntimeError where none of them ran."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return True
    if result.returncode not in (0, 1) or " passed" not in result.stdout and " failed" not in result.stdout:
        raise RuntimeError(f"{' '.join(tests)}: the tests did not run\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return result.returncode == 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests/triton_mutants/run.py", description=__doc__.partition("\n")[0])
    parser.add_argument("lists", nargs="*", type=Path, help="lists of mutants [all beside this file]")
    parser.add_argument("--only", metavar="WORD", default="", help="mutants with this in their names alone")
    parser.add_argument("--unchanged", action="store_true", help="first see that the tests pass without any")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what became of each to this file too")
    chosen = parser.parse_args(argv)
    lists = chosen.lists or sorted(HERE.glob("*.toml"))
    mutants = [m for path in lists for m in read(path) if chosen.only in m["name"]]
    became: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(folder)
        if chosen.unchanged:
            for tests in {tuple(m["tests"]) for m in mutants if "tests" in m}:
                if fails(folder, list(tests)):
                    raise RuntimeError(f"{' '.join(tests)}: fails on the kernels as they are")
        for mutant in mutants:
            start = time.monotonic()
            if "equivalent" in mutant:
                became[mutant["name"]] = "equivalent"
            else:
                path = folder / "kernels" / mutant["file"]
                text = path.read_text()
                path.write_text(text.replace(mutant["old"], mutant["new"]))
                became[mutant["name"]] = "caught" if fails(folder, mutant["tests"]) else "SURVIVES"
                path.write_text(text)
            print(f"{became[mutant['name']]:10} {time.monotonic() - start:5.0f} s  {mutant['name']}", flush=True)
    count = {kind: list(became.values()).count(kind) for kind in ("caught", "equivalent", "SURVIVES")}
    print(", ".join(f"{n} {kind}" for kind, n in count.items()), f"of {len(became)}")
    if chosen.json:
        chosen.json.write_text(json.dumps(became, indent=1))
    return 1 if count["SURVIVES"] else 0


if __name__ == "__main__":
    sys.exit(main())
