"""What the benchmarks share: the device, on what a figure was taken, and the table at the end."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess

import pytest
import torch

from benchmarks.table import cases_of, text
from lavit import __version__


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    machine_info.pop("node", None)  # the name of someone's machine
    cpu = machine_info.get("cpu") or {}
    name = cpu.get("brand_raw") or platform.processor() or platform.machine()
    # The flags of the processor are a page of the file, and no one reads them.
    machine_info["cpu"] = {key: value for key, value in cpu.items() if key != "flags"}
    machine_info["torch"] = torch.__version__
    machine_info["triton"] = _version("triton")
    machine_info["lavit"] = __version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else name
    machine_info["driver"] = _driver()
    machine_info["peers"] = {name: v for name in ("faiss-cpu", "vector-quantize-pytorch") if (v := _version(name))}


def pytest_benchmark_update_commit_info(config, commit_info) -> None:
    """Where the files came without their history, whoever copied them says which commit they are."""
    if commit_info.get("id") in (None, "unknown", "unversioned") and "LAVIT_COMMIT" in os.environ:
        commit_info["id"] = os.environ["LAVIT_COMMIT"]


def pytest_terminal_summary(terminalreporter, exitstatus, config) -> None:
    session = getattr(config, "_benchmarksession", None)
    measured = [b for b in getattr(session, "benchmarks", []) if b and b.stats.data]
    if measured:
        terminalreporter.section("benchmarks", sep="=")
        terminalreporter.write_line(text(cases_of([b.as_dict(include_data=False) for b in measured])))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    """The version of NVIDIA's driver, or None without a GPU."""
    if not torch.cuda.is_available():
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()[0].strip()
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return None
