"""code_statistics beside the obvious ways, with the same counts and sums.

``pytest benchmarks/kernels/bench_code_statistics.py``. K = 16384 codes of dimension 32, as in the paper; n = 5440
vectors are the kept patches of about 64 images. "one code" is a codebook that has collapsed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.timing import measure
from lavit.kernels import code_statistics
from lavit.kernels.dispatch import OPERATIONS

CODES, WIDTH = 16384, 32
# Beyond it the n x K one-hot matrix takes gigabytes; how the ids are spread changes nothing about it.
LARGEST_ONE_HOT = 5440


def one_hot(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The moving average of most codebooks, the release's too."""
    chosen = torch.nn.functional.one_hot(ids, CODES).to(x.dtype)
    return chosen.sum(0), chosen.T @ x


def index_add(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    sums = x.new_zeros(CODES, WIDTH).index_add_(0, ids, x)
    return torch.bincount(ids, minlength=CODES).to(x.dtype), sums


def scatter_add(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    sums = x.new_zeros(CODES, WIDTH).scatter_add_(0, ids[:, None].expand(-1, WIDTH), x)
    return x.new_zeros(CODES).scatter_add_(0, ids, x.new_ones(1).expand(ids.shape[0])), sums


PEERS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "one-hot product": one_hot,
    "index_add": index_add,
    "scatter_add": scatter_add,
}


@pytest.mark.parametrize("name", [*PEERS, "reference", "cpu", "cpp", "triton"])
@pytest.mark.parametrize("ids_are", ["spread", "one code"])
@pytest.mark.parametrize("n", [5440, 65536])
def bench_code_statistics(benchmark, device, n, ids_are, name):
    if name == "one-hot product" and (n > LARGEST_ONE_HOT or ids_are != "spread"):
        pytest.skip("measured once, where its n x K matrix is small")
    if name not in PEERS:
        reason = OPERATIONS["code_statistics"].implementations[name].unusable(device.type)
        if reason is not None:
            pytest.skip(reason)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, WIDTH, generator=generator).to(device)
    spread = torch.randint(CODES, (n,), generator=generator).to(device)
    ids = spread if ids_are == "spread" else torch.full_like(spread, 7)

    def run() -> tuple[Tensor, Tensor]:
        return PEERS[name](x, ids) if name in PEERS else code_statistics(x, ids, CODES, impl=name)

    assert_statistics(run(), x, ids)
    moved = 4 * n * WIDTH + 8 * n + 4 * CODES * (WIDTH + 1)
    group, label = f"code statistics n={n} K={CODES} D={WIDTH}, {ids_are}", name if name in PEERS else f"lavit {name}"
    measure(benchmark, device, group, run, implementation=label, bytes_moved=moved)


def assert_statistics(got: tuple[Tensor, Tensor], x: Tensor, ids: Tensor) -> None:
    """Exact counts; sums within one rounding for each row of a code, on the way of its largest partial sum."""
    counts = torch.bincount(ids.cpu(), minlength=CODES)
    assert torch.equal(got[0].long().cpu(), counts)
    values, ids = x.double().cpu(), ids.cpu()
    exact, size = (torch.zeros(CODES, WIDTH, dtype=torch.float64).index_add_(0, ids, v) for v in (values, values.abs()))
    allowed = counts[:, None] * torch.finfo(torch.float32).eps / 2 * size
    assert bool(((got[1].double().cpu() - exact).abs() <= allowed).all())
