"""Every tile of every table, with tails in every dimension, fenced: no access outside of an argument, results as
the reference's. The grids of float64 run from their last program to their first."""

from __future__ import annotations

import fence
import pytest
import torch
from nearest import assert_right_at_any_magnitude, vectors
from usable import skip_unless_usable

from lavit.kernels import code_statistics, gumbel_select
from lavit.kernels.gumbel_select.library import gumbel_select_backward_op

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy.*"),
]


@pytest.fixture
def fenced(monkeypatch):
    skip_unless_usable("nearest_code", "triton", CPU)
    fenced = fence.install(monkeypatch)
    yield fenced
    assert fenced.accesses > 0


def test_the_fence_sees_what_strays(monkeypatch):
    """A load whose value is thrown away, a store behind and one before, and a store to another argument."""
    skip_unless_usable("nearest_code", "triton", CPU)
    from straying import stray

    fence.install(monkeypatch)
    stray(torch.zeros(16), load=0, store=0)
    for where in ({"load": 1, "store": 0}, {"load": 0, "store": 1}, {"load": 0, "store": -1}):
        with pytest.raises(Exception, match="outside of x"):
            stray(torch.zeros(16), **where)


TILES = ["128x128", "128x64", "64x128", "256x128", "128x128 lanes 8", "64x128 short", "64x64 short"]
WAYS = [("cosine", True, "exact"), ("euclidean", True, "exact"), ("euclidean", False, "exact")]
WAYS += [("cosine", True, "fast"), ("cosine", True, "clusters")]


@pytest.mark.parametrize(("dim", "dtype"), [(13, torch.float32), (13, torch.float64), (131, torch.float16)])
@pytest.mark.parametrize("name", TILES)
def test_nearest_code_stays_within_its_arguments(fenced, monkeypatch, name, dim, dtype):
    """Rows, codes, columns, shares of the codebook and the rescoring's rows all end within a block. The last way has
    clusters within the bound, so that lanes are searched whole."""
    from lavit.kernels.nearest_code import triton

    fenced.backwards = dtype == torch.float64
    monkeypatch.setattr(triton, "RESCORE_ROWS", 4)
    tile = triton.CONFIGS[name]
    num_codes = 2 * tile.block_n + 5
    x, codebook = vectors(7, dim, 1, dtype), vectors(num_codes, dim, 2, dtype)
    close = (vectors(1, dim, 5, torch.float64) + 1e-3 * codebook.double()).to(dtype)
    for metric, normalize_x, precision in WAYS:
        codes = close if precision == "clusters" else codebook
        fast = "fast" if precision == "fast" else "exact"
        ids, _ = triton.nearest_code(x, codes, metric, normalize_x, fast, tile, splits=2)
        if precision != "fast":
            assert_right_at_any_magnitude(ids, x, codes, metric, normalize_x)


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gumbel_select_stays_within_its_arguments(fenced, block, dtype):
    """The number of patches is odd, and more than half a block."""
    fenced.backwards = dtype == torch.float64
    patches = block // 2 + max(1, block // 8) | 1
    scores = torch.randn(3, patches, 2, dtype=torch.float64).to(dtype)
    noise = torch.randn(3, patches, 2, dtype=torch.float64).to(dtype)
    for options in ({"seeds": torch.arange(3)}, {"noise": noise}, {"deterministic": True}):
        for min_keep in (0, patches - 2):
            got = gumbel_select(scores, min_keep=min_keep, tau=0.7, impl="triton", **options)
            expected = gumbel_select(scores, min_keep=min_keep, tau=0.7, impl="reference", **options)
            for name in ("keep", "order", "cu_kept", "cu_dropped"):
                assert torch.equal(getattr(got, name), getattr(expected, name)), name
    wide, one = torch.randn(patches, 7, dtype=dtype), torch.ones((), dtype=dtype).expand(3, patches)
    for keep, soft in ((wide[:, :6:2].T, one), (wide[:, 4:].T, None), (None, wide[:, :3].T)):
        got, wanted = (
            gumbel_select_backward_op(keep, soft, expected.prob, 0.7, dtype, impl) for impl in ("triton", "reference")
        )
        assert torch.equal(got, wanted)


def test_offsets_of_more_images_than_a_block_stay_within_their_arguments(fenced, monkeypatch):
    skip_unless_usable("gumbel_select", "triton", CPU)
    from lavit.kernels.gumbel_select import triton

    monkeypatch.setattr(triton, "SCAN", 16)
    scores = torch.randn(37, 3, 2)
    got = gumbel_select(scores, deterministic=True, impl="triton")
    assert torch.equal(got.cu_kept, gumbel_select(scores, deterministic=True, impl="reference").cu_kept)


@pytest.mark.parametrize("dim", [9, 17, 47, 70, 131, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_code_statistics_stay_within_their_arguments(fenced, dim, dtype):
    """Every width of TILES, the last also in two blocks; codes with no row, one, and more than a step takes."""
    fenced.backwards = dtype == torch.float64
    x = torch.randn(150, dim, dtype=torch.float64).to(dtype)
    ids = torch.cat([torch.full((131,), 2), torch.tensor([5, 0, 0, -1]), torch.randint(-1, 6, (15,))])
    counts, sums = code_statistics(x, ids, 6, impl="triton")
    exact = code_statistics(x.double(), ids, 6, impl="reference")[1]
    size = code_statistics(x.double().abs(), ids, 6, impl="reference")[1]
    assert torch.equal(counts.long(), torch.bincount(ids[ids >= 0], minlength=6))
    assert bool(((sums - exact).abs() <= counts[:, None] * torch.finfo(sums.dtype).eps * size).all())
