"""partition: a mask to a stable order and two offset vectors. ``pytest benchmarks/kernels/bench_partition.py``"""

from __future__ import annotations

import pytest
import torch

from benchmarks.timing import measure
from lavit.kernels import partition
from lavit.kernels.extension import cpp_unusable


@pytest.mark.parametrize("impl", ["cpp", "reference"])
@pytest.mark.parametrize("shape", [(64, 64), (256, 256)])
def bench_partition(benchmark, device, shape, impl):
    if impl == "cpp" and (reason := cpp_unusable(device.type)) is not None:
        pytest.skip(reason)
    keep = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 1 / 3).to(device)
    for got, want in zip(partition(keep, impl=impl), partition(keep, impl="reference"), strict=True):
        assert torch.equal(got, want)
    run = lambda: partition(keep, impl=impl)  # noqa: E731
    measure(benchmark, device, f"partition {shape}", run, implementation=f"lavit {impl}")
