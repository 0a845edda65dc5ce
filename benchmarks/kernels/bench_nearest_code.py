"""nearest_code beside the release's formula, with the same ids. ``pytest benchmarks/kernels/bench_nearest_code.py``

K = 16384 codes of dimension 32, as in the paper; n = 5440 vectors are the kept patches of about 64 images.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.timing import measure
from lavit.kernels import nearest_code
from lavit.kernels.dispatch import OPERATIONS

CODES, WIDTH = 16384, 32


def release(x: Tensor, codebook: Tensor) -> Tensor:
    """The release's way: the whole matrix of distances, and a one-hot of the result that nothing reads."""
    z = torch.nn.functional.normalize(x, dim=1)
    distance = z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T
    ids = distance.argmin(1)
    torch.nn.functional.one_hot(ids, codebook.shape[0]).to(x.dtype)
    return ids


@pytest.mark.parametrize("name", ["release", "reference", "cpu", "triton"])
@pytest.mark.parametrize("n", [640, 5440])
def bench_nearest_code(benchmark, device, n, name):
    implementations = OPERATIONS["nearest_code"].implementations
    if name != "release" and name not in implementations:
        pytest.skip(f"nearest_code has no implementation {name!r}")
    if name != "release" and (reason := implementations[name].unusable(device.type)) is not None:
        pytest.skip(reason)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, WIDTH, generator=generator).to(device)
    codebook = torch.nn.functional.normalize(torch.randn(CODES, WIDTH, generator=generator), dim=1).to(device)

    def run() -> Tensor:
        return release(x, codebook) if name == "release" else nearest_code(x, codebook, metric="euclidean", impl=name)

    assert_nearest(run(), x, codebook)
    measure(benchmark, device, f"nearest code n={n} K={CODES} D={WIDTH}", run, operations=2 * n * CODES * WIDTH)


def assert_nearest(ids: Tensor, x: Tensor, codebook: Tensor) -> None:
    """The id is float64's, or one that is as near within float32's rounding of a distance (at most 4, 32 terms)."""
    z = torch.nn.functional.normalize(x.double(), dim=1)
    for rows, chosen in zip(z.split(512), ids.split(512), strict=True):
        squared = codebook.double().square().sum(1) - 2 * rows @ codebook.double().T + 1
        gap = squared.gather(1, chosen[:, None])[:, 0] - squared.amin(1)
        assert float(gap.max()) <= 4 * WIDTH * torch.finfo(torch.float32).eps
