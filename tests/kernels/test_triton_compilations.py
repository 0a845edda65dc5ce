"""How often the launchers compile, told without a GPU: Triton's own launcher with a stand-in for driver and compiler.

A process of its own, since Triton is either compiler or interpreter for as long as one lives.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.mark.parametrize(
    ("operation", "first"),
    [
        ("varlen_attention", [3]),  # by warm_up: forward, and the two kernels of the backward
        ("policy_attention", [3]),
        ("gumbel_select", [3]),  # selection, offsets, gradient
        ("nearest_code", [3, 4]),  # preparation, screening, rescoring; with a bias also the ends of the codebook
        ("code_statistics", [1]),
    ],
)
def test_other_sizes_strides_and_settings_compile_nothing(operation, first):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(Path(__file__).with_name("compilations.py")), operation, "90"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout.splitlines()[-1])
    assert counts[: len(first)] == first
    assert len(counts) > len(first) and not any(counts[len(first) :])
