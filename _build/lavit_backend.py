"""The build backend: setuptools', except that a torch which is already installed is the one to compile against.

pip builds in an isolated environment. A plain build requirement ``torch`` would put the newest torch there: a second
download of gigabytes, while the user's own torch lies beside it. So torch is asked for only where the environment that
lavit is being installed into has none that satisfies the project's own requirement; setup.py finds the other one by
``target_path``.
"""

from __future__ import annotations

import atexit
import json
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

SETUPTOOLS = (70, 1)  # the first that makes wheels by itself


def ensure_setuptools() -> None:
    """Under --no-build-isolation a bare environment has no setuptools, or one that makes no wheels.

    Then one is fetched to a temporary folder, as isolation would have done; the environment stays as it is.
    """
    try:
        if tuple(int(n) for n in version("setuptools").split(".")[:2]) >= SETUPTOOLS:
            return
    except PackageNotFoundError:
        pass
    folder = tempfile.mkdtemp(prefix="lavit-build-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    wanted = "setuptools>=" + ".".join(map(str, SETUPTOOLS))
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", folder, wanted], check=True)
    sys.path.insert(0, folder)


ensure_setuptools()

from setuptools import build_meta  # noqa: E402
from setuptools.build_meta import (  # noqa: E402
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


@cache
def target_path() -> list[str]:
    """``sys.path`` of the environment being installed into: what its interpreter has without pip's isolation.

    pip isolates by PYTHONPATH, which ``-E`` ignores; site packages of the user and of the system come along where the
    environment has them.
    """
    code = "import json, sys; print(json.dumps(sys.path[1:]))"
    answer = subprocess.run([sys.executable, "-E", "-c", code], capture_output=True, text=True, check=True)
    return json.loads(answer.stdout)


def requirement() -> tuple[str, tuple[int, int]]:
    """The project's own requirement of torch, e.g. ("torch>=2.10", (2, 10))."""
    found = re.search(r'"(torch>=(\d+)\.(\d+))"', PYPROJECT.read_text(encoding="utf-8"))
    if found is None:
        raise RuntimeError(f"{PYPROJECT}: expected a dependency of the form \"torch>=2.10\"")
    return found[1], (int(found[2]), int(found[3]))


def installed_torch(path: list[str]) -> str | None:
    """The version of torch on ``path`` if it satisfies the requirement."""
    _, least = requirement()
    for distribution in distributions(name="torch", path=path):
        number = re.match(r"(\d+)\.(\d+)", distribution.version)
        if number and (int(number[1]), int(number[2])) >= least:
            return distribution.version
        return None
    return None


def _torch_if_missing() -> list[str]:
    return [] if installed_torch(target_path()) else [requirement()[0]]


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_torch_if_missing()]


def get_requires_for_build_editable(config_settings=None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_torch_if_missing()]
