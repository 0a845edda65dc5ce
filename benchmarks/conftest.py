"""What the benchmarks share: the device, and the sentence that says on what a figure was taken."""

from __future__ import annotations

import platform

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    cpu = platform.processor() or platform.machine()
    machine_info["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
