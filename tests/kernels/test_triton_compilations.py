"""How often the launchers compile, told without a GPU: Triton's own launcher with a stand-in for driver and compiler.

A process of its own, since Triton is either compiler or interpreter for as long as one lives.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

# What is compiled is what differs in the launcher's cache of a kernel; nothing is, here.
SCRIPT = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

class Driver:
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)

triton.runtime.driver.set_active(Driver())
compiled, run = {}, JITFunction.run

def remember(self, key, signature, device, *_):
    kept = object()
    self.device_caches[device][0][key] = kept
    compiled.setdefault(self.fn.__name__, []).append(str(key))
    return kept

JITFunction._do_compile = remember
JITFunction.run = lambda self, *a, grid, warmup, **k: run(self, *a, grid=grid, warmup=True, **k)

from lavit.kernels.code_statistics import triton as statistics
from lavit.kernels.gumbel_select import triton as select
from lavit.kernels.nearest_code import triton as nearest

def gumbel():
    for batch, patches, min_keep, tau in ((1, 200, 0, 1.0), (2, 256, 1, 1.0), (16, 144, 16, 0.5), (33, 251, 37, 0.3)):
        scores, seeds = torch.zeros(batch, patches, 2), torch.zeros(batch, dtype=torch.int64)
        select.gumbel_select(scores, None, seeds, tau, min_keep)
        prob, one = torch.zeros(batch, patches), torch.ones(())
        wide = torch.zeros(patches, 2 * batch)
        rows = wide.T[:batch]
        for keep, soft in ((prob, one.expand(batch, patches)), (wide[:, ::2].T, prob), (rows, rows)):
            select.gumbel_select_backward(keep, soft, prob, tau, torch.float32)

def codes():
    for n in (1, 16, 17, 640, 5440):
        for num_codes in (2000, 16384):
            for metric in ("cosine", "euclidean"):
                nearest.nearest_code(torch.zeros(n, 32), torch.zeros(num_codes, 32), metric, True, "exact")

def sums():
    for n in (1, 2, 16, 17, 640):
        for num_codes in (1, 16, 1000):
            statistics.code_statistics(torch.zeros(n, 32), torch.zeros(n, dtype=torch.int64), num_codes)

{"gumbel_select": gumbel, "nearest_code": codes, "code_statistics": sums}[sys.argv[1]]()
print(json.dumps({name: len(keys) for name, keys in compiled.items()}))
"""


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("gumbel_select", {"_select": 1, "_offsets": 1, "_gradient": 1}),
        # With and without a bias; the ends of a codebook matter with one only.
        ("nearest_code", {"ends_kernel": 1, "prepare_kernel": 2, "screen_kernel": 2, "rescore_kernel": 2}),
        ("code_statistics", {"_segment_sums": 1}),
    ],
)
def test_other_sizes_strides_and_settings_compile_nothing(operation, expected):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SCRIPT, operation]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == expected
