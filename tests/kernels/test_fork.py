"""Children of os.fork, as some data loaders and servers make them, after OpenMP has started threads in the parent."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lavit.kernels.extension import cpp_unusable

SCRIPT = """
import os, signal, sys
import torch
from lavit.kernels import nearest_code, pack, partition

torch.set_num_threads(2)
x, codebook, rows = torch.randn(5000, 32), torch.randn(300, 32), torch.ones(64, 256, 64)
order, cu, _ = partition(torch.rand(64, 256) > 0.5)
calls = {
    "nearest_code": lambda: nearest_code(x, codebook, impl="cpp"),
    "nearest_code, few": lambda: nearest_code(x[:300], codebook, impl="cpp"),
    "pack": lambda: pack(rows, order, cu, impl="cpp"),
}
first, call = sys.argv[1], calls[sys.argv[2]]
torch.ones(2000, 2000).add(1) if first == "torch" else call()
child = os.fork()
if child == 0:
    signal.alarm(40)  # ends a child that waits for ever
    here = call()
    os._exit(0 if torch.get_num_threads() == 1 and torch.equal(here, call()) else 1)
status = os.waitpid(child, 0)[1]
sys.exit(os.waitstatus_to_exitcode(status) or torch.get_num_threads() - 2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.skipif(cpp_unusable("cpu") is not None, reason=str(cpp_unusable("cpu")))
@pytest.mark.parametrize("call", ["nearest_code", "nearest_code, few", "pack"])
@pytest.mark.parametrize("first", ["torch", "the same"])
def test_a_forked_child_computes_on_one_thread_and_waits_for_no_other(first, call):
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    ended = subprocess.run([sys.executable, "-c", SCRIPT, first, call], env=environment, timeout=200)
    assert ended.returncode == 0, "-14: the child hung"
