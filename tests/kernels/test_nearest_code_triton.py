"""What is special about the tensor-core search: its bound, its rare paths, its tiles and shares. The laws that every
implementation obeys are in test_nearest_code.py."""

import pytest
import torch
import torch.nn.functional as F
from nearest import assert_nearest, assert_right_at_any_magnitude, compared, distances, vectors
from usable import gpu_waits, skip_unless_usable

from lavit.kernels import nearest_code, triton_support

TILES = ["128x128", "128x64", "64x128", "256x128", "128x128 lanes 8", "64x128 short", "64x64 short"]
METRICS = [("cosine", True), ("euclidean", True), ("euclidean", False)]
pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    # The interpreter warns of NaN, which is how codes that do not exist are marked.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy.*"),
]


@pytest.fixture
def launcher(device, monkeypatch):
    """kernels/nearest_code/triton.py, which can be imported only where triton is.

    The interpreter's time is that of a program, however large: it gets more rows at once.
    """
    skip_unless_usable("nearest_code", "triton", device)
    from lavit.kernels.nearest_code import triton

    if device.type == "cpu":
        monkeypatch.setattr(triton, "RESCORE_ROWS", 32)
    return triton


def assert_exact(ids, x, codebook, metric, normalize_x):
    assert_nearest(ids.cpu(), x.cpu(), codebook.cpu(), metric, normalize_x)


@pytest.mark.parametrize(("metric", "normalize_x"), METRICS)
@pytest.mark.parametrize(
    ("n", "num_codes", "dim"), [(0, 5, 8), (1, 1, 1), (131, 301, 32), (37, 521, 17), (3, 5, 200)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_finds_the_nearest(launcher, device, n, num_codes, dim, dtype, metric, normalize_x):
    x, codebook = vectors(n, dim, 1, dtype).to(device), vectors(num_codes, dim, 2, dtype).to(device)
    ids, score = nearest_code(x, codebook, metric=metric, normalize_x=normalize_x, return_score=True, impl="triton")
    assert ids.shape == score.shape == (n,) and ids.dtype == torch.int64 and score.dtype == torch.float32
    assert_exact(ids, x, codebook, metric, normalize_x)
    expected = nearest_code(x, codebook, metric=metric, normalize_x=normalize_x, return_score=True, impl="reference")
    same = ids == expected[0]
    # Two float32 sums of D terms, in different orders, of numbers that are at most (|x| + |c|)^2.
    scale = 1.0 if metric == "cosine" else sum(float(v.double().norm(dim=1).amax()) for v in (x, codebook) if n) ** 2
    torch.testing.assert_close(score[same], expected[1][same], rtol=0, atol=2 * (dim + 3) * 2**-24 * scale)


def unpacked(keys, p):
    mask = (1 << p.id_bits) - 1
    bits = keys.view(torch.int32)
    return (bits & ~mask).view(torch.float32), bits & mask


CLOSE = {
    "random": lambda n, d: vectors(n, d, 5),
    "one cluster": lambda n, d: vectors(1, d, 5) + 1e-3 * vectors(n, d, 6),
    "uneven lengths": lambda n, d: vectors(n, d, 5) * torch.logspace(-4, 3, n)[:, None],
    "tiny": lambda n, d: vectors(n, d, 5) * 1e-20,
    "few large entries": lambda n, d: vectors(n, d, 5) * torch.logspace(-6, 0, d),
    "whole numbers": lambda n, d: (vectors(n, d, 5) * 150).clamp(-500, 500).round(),
}


@pytest.mark.parametrize("codes", CLOSE)
@pytest.mark.parametrize(("metric", "normalize_x"), METRICS)
@pytest.mark.parametrize("dim", [5, 32])
def test_the_bound_holds_for_every_block(launcher, device, codes, metric, normalize_x, dim):
    """Each key differs from the float64 maximum of the block that it names by at most half the window. Of whole numbers
    that float16 holds, sums included, the packing of the tile's number is all the difference."""
    x, codebook = vectors(19, dim, 7).to(device), CLOSE[codes](300, dim).to(device)
    if codes == "whole numbers":
        x = CLOSE[codes](19, dim).flip(1).to(device)
    assert_bound_holds(launcher, x, codebook, metric, normalize_x)


def test_the_bound_has_room_for_the_packing(launcher, device):
    """Of entries of 11 bits, which float16 holds, all sums of two products are exact in float32 and use its last bits:
    the tile's number in their place is the whole difference, far above what rounding may add."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(900, 1023, (19, 2), generator=generator) * 2.0 + 1
    codebook = torch.randint(512, 650, (300, 2), generator=generator) * 2.0 + 1
    assert_bound_holds(launcher, x.to(device), codebook.to(device), "euclidean", False)


def assert_bound_holds(launcher, x, codebook, metric, normalize_x):
    p = launcher.plan(x, 300, launcher.CONFIGS["64x128"], splits=2)
    found = launcher.screen(x, codebook, metric, normalize_x, False, p)
    x64, c64 = compared(x, codebook, metric, normalize_x)
    scores = x64 @ c64.T - (0 if metric == "cosine" else c64.square().sum(dim=1) / 2)
    scores = F.pad(scores, (0, p.tiles * 128 - 300), value=-torch.inf)
    # (n, tile, pair, lane, 2) -> (n, tile, lane)
    blocks = scores.view(19, p.tiles, -1, p.tile.lanes, 2).amax(dim=(2, 4))
    # The powers of two by which the kernels scale rows and codebook.
    power = lambda largest: torch.exp2(-torch.floor(torch.log2(largest)))  # noqa: E731
    g = 1.0 if metric == "cosine" else power(codebook.abs().max().double())
    r = torch.ones(19) if metric == "cosine" or normalize_x else power(x.abs().amax(dim=1).double())
    scale, half_window = (g * r.to(x.device).double())[:, None], found.window.double()[:, None] / 2
    checked = 0
    for keys in found.keys:
        value, tile = unpacked(keys, p)
        for split in range(2):
            lanes = slice(split * p.tile.lanes, (split + 1) * p.tile.lanes)
            tiles = tile[:, lanes].long() + split * p.per_split
            there = value[:, lanes] > -1e38
            true = blocks.gather(1, tiles.clamp(max=p.tiles - 1)[:, None])[:, 0] * scale
            difference = (value[:, lanes].double() - true).abs()
            assert bool((difference <= half_window)[there].all())
            checked += int(there.sum())
    assert checked >= 19 * 3 * p.tile.lanes


@pytest.mark.parametrize("dim", [8, 32, 100])
def test_the_bound_is_tight_enough_to_rule_out_nearly_all(launcher, device, dim):
    """Twice float16's rounding of two unit vectors, 2^-11 an entry at the most, and the packing: under 2^-9."""
    x, codebook = vectors(50, dim, 3).to(device), vectors(260, dim, 4).to(device)
    found = launcher.screen(x, codebook, "cosine", True, False, launcher.plan(x, 260))
    assert float(found.window.max()) < 2**-9 + 2 * dim * 2**-22


@pytest.mark.parametrize("codes", CLOSE)
@pytest.mark.parametrize(("metric", "normalize_x"), METRICS)
@pytest.mark.parametrize("splits", [1, 3])
def test_codes_closer_than_half_precision_are_told_apart(launcher, device, codes, metric, normalize_x, splits):
    """Whole clusters lie within the bound: many candidates, and lanes that must be searched whole."""
    x, codebook = (vectors(1, 32, 5) + 1e-2 * vectors(9, 32, 8)).to(device), CLOSE[codes](700, 32).to(device)
    ids, _ = launcher.nearest_code(x, codebook, metric, normalize_x, "exact", launcher.CONFIGS["64x128"], splits)
    assert_exact(ids, x, codebook, metric, normalize_x)


def test_a_code_that_half_precision_puts_second_is_found(launcher, device):
    """Every code has a twin in another tile, which scores 1e-5 less for what is nearest to it: ten times less than what
    float16's rounding moves either, and a hundred times more than float32's."""
    base = F.normalize(vectors(350, 32, 11), dim=1)
    codebook = torch.cat((base, F.normalize(base + 8e-4 * vectors(350, 32, 12), dim=1)))
    wanted = torch.cat((torch.arange(64), torch.arange(350, 414)))
    ids, _ = launcher.nearest_code(
        codebook[wanted].to(device), codebook.to(device), "cosine", True, "exact", launcher.CONFIGS["64x128"], 1
    )
    assert torch.equal(ids.cpu(), wanted)


def test_lengths_of_codes_count_half_their_square(launcher, device):
    """Of two codes on the row's line, one beyond the row and one short of it, the former is nearer by 1e-5 of |x|^2:
    both are left by the screening, and any other weight of |c|^2 takes the shorter."""
    x = vectors(64, 32, 14)
    codebook = torch.cat((1.05 * x, 0.9498 * x)).to(device)
    ids, _ = launcher.nearest_code(x.to(device), codebook, "euclidean", False, "exact", launcher.CONFIGS["64x128"], 1)
    assert torch.equal(ids.cpu(), torch.arange(64))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_equal_codes_everywhere_give_the_first(device, launcher, metric):
    """Every block ties: the exhaustive path, with ties across lanes, tiles and shares."""
    codebook = vectors(1, 32).expand(520, 32).clone()
    codebook[:3] = -codebook[:3]
    ids, _ = launcher.nearest_code(vectors(5, 32).abs().to(device) * codebook[3].to(device), codebook.to(device),
                             metric, False, "exact", splits=2)  # fmt: skip
    assert ids.tolist() == [3] * 5


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize(("dim", "dtype"), [(13, torch.float32), (13, torch.float64), (131, torch.float32)])
@pytest.mark.parametrize("name", TILES)
def test_every_tile_names_every_code(launcher, device, name, precision, dim, dtype):
    """Every place in a tile, every lane, tile and share decodes to its code: each is the answer once. Rows, codes and
    columns all end within a tile; float64 and wide rows have their float16 copies made by a kernel of its own."""
    tile = launcher.CONFIGS[name]
    num_codes = 2 * tile.block_n + tile.block_n // 2 - 1
    codebook = F.normalize(vectors(num_codes, dim, dtype=dtype), dim=1).to(device)
    order = torch.randperm(num_codes, generator=torch.Generator().manual_seed(1))
    for splits in (1, 2):
        ids, _ = launcher.nearest_code(codebook[order], codebook, "cosine", True, precision, tile, splits)
        assert torch.equal(ids.cpu(), order)


def test_all_tiles_of_the_table_are_tested(launcher):
    assert set(launcher.CONFIGS) == set(TILES)
    assert {name for row in launcher.TABLE.values() for name in row.values()} | set(launcher.SMALLER) <= set(TILES)


@pytest.mark.parametrize("rooms", [0, 1, 2])
def test_where_the_tables_tile_does_not_fit_a_smaller_one_gives_the_same_ids(launcher, device, monkeypatch, rooms):
    """A device that has room for only the last of the tiles, as Triton says it when a compilation is too large."""
    errors = pytest.importorskip("triton.runtime.errors")
    x, codebook = vectors(9, 150).to(device), vectors(300, 150, 1).to(device)
    expected = nearest_code(x, codebook, impl="triton")
    tiles = [launcher.choose_config(x.device, 150), *(launcher.CONFIGS[name] for name in launcher.SMALLER)]
    screen, tried = launcher.screen, []

    def screen_with_less_room(*arguments):
        tried.append(arguments[-1].tile)
        if len(tried) <= rooms:
            raise errors.OutOfResources(200_000, 101_376, "shared memory")
        return screen(*arguments)

    monkeypatch.setattr(triton_support, "_refused", {})
    monkeypatch.setattr(launcher, "screen", screen_with_less_room)
    assert torch.equal(nearest_code(x, codebook, impl="triton"), expected)
    assert tried == tiles[: rooms + 1]


def test_more_tiles_than_eight_bits_can_number(launcher, device):
    """Small tiles stand for a large codebook: 1250 of them take twelve bits, and more than one share."""
    tile = launcher.Config(16, 16, 4, 4, 2)
    x, codebook = vectors(7, 16).to(device), vectors(20000, 16, 1).to(device)
    p = launcher.plan(x, 20000, tile)
    assert p.id_bits == 12 and p.tiles == 1250
    ids, _ = launcher.nearest_code(x, codebook, "cosine", True, "exact", tile, 2)
    assert_exact(ids, x, codebook, "cosine", True)


@pytest.mark.parametrize(("metric", "normalize_x"), METRICS)
def test_any_scale_of_vectors_and_codes(launcher, device, metric, normalize_x):
    """From 1e-18 to 1e18: float16 holds neither, the powers of two bring both in; zero rows and zero codes too."""
    x, codebook = vectors(8, 12), vectors(30, 12, 1)
    x[3] = 0
    if metric == "euclidean":  # a zero code has no direction
        codebook[5] = 0
    for of_x, of_codes in ((1e-18, 1.0), (1e18, 1.0), (1.0, 1e-12), (1e12, 1e15)):
        scaled = (x * of_x).to(device), (codebook * of_codes).to(device)
        ids, _ = launcher.nearest_code(*scaled, metric, normalize_x, "exact")
        assert_exact(ids, *scaled, metric, normalize_x)


def test_fast_is_within_half_precision_of_the_best(launcher, device):
    """Unit vectors: an entry rounds by at most 2^-11 of itself, a product by twice that; the place takes 5 bits."""
    x, codebook = vectors(200, 32).to(device), vectors(900, 32, 1).to(device)
    ids, score = launcher.nearest_code(x, codebook, "cosine", True, "fast")
    d = distances(x.cpu(), codebook.cpu(), "cosine", True)
    chosen = d.gather(1, ids.cpu()[:, None])[:, 0]
    worst = 2 * (2 * 2**-11 + 2**-22 + 32 * 2**-22 + 2**-18)
    assert bool(((chosen - d.amin(dim=1)) / 2 <= worst).all())
    torch.testing.assert_close(score.cpu().double(), 1 - chosen / 2, rtol=0, atol=35 * 2**-23)


def test_the_second_block_of_a_lane_is_searched_too(launcher, device):
    """Each row has two codes that half precision cannot order, at the same place of two tiles, and no third."""
    x, codebook = vectors(20, 32), vectors(300, 32, 1)
    codebook[:20], codebook[128:148] = x + 1e-2 * vectors(20, 32, 2), x + 1e-2 * vectors(20, 32, 3)
    tile = launcher.CONFIGS["64x128"]
    ids, _ = launcher.nearest_code(x.to(device), codebook.to(device), "cosine", True, "exact", tile, 1)
    near = distances(x, codebook, "cosine", True).topk(2, dim=1, largest=False)
    clear = near.values[:, 1] - near.values[:, 0] > 35 * 2**-23  # of float32's rounding, not of float16's
    assert bool(clear.sum() >= 5) and torch.equal(ids.cpu()[clear], near.indices[:, 0][clear])


def test_fast_ties_go_to_the_lowest_id(launcher, device):
    """Equal codes have equal half-precision scores: in one block, in one lane of other tiles, in another share."""
    codebook = vectors(700, 16)
    codebook[[131, 260, 388, 644]] = codebook[3].clone()
    codebook[[10, 522]] = codebook[9].clone()
    for splits in (1, 2):
        ids, _ = launcher.nearest_code(
            codebook[[3, 9]].to(device), codebook.to(device), "cosine", True, "fast", launcher.CONFIGS["64x128"], splits
        )
        assert ids.tolist() == [3, 9]


def test_wide_codes_are_scaled_by_their_largest_entry_wherever_it_is(launcher, device):
    """A step takes 64 columns of 200: each code has entries near 1e30 in one of the steps and near 1e-30 elsewhere."""
    codebook = vectors(40, 200, 1) * 1e-30
    for code in range(40):
        at = 64 * (code % 4)
        codebook[code, at : min(at + 3, 200)] = vectors(1, 3, code)[0] * 1e30
    x = vectors(5, 200, 2)
    ids, _ = launcher.nearest_code(x.to(device), codebook.to(device), "cosine", True, "exact")
    assert_right_at_any_magnitude(ids.cpu(), x, codebook, "cosine", True)


def test_shares_fill_the_device_and_never_leave_the_codebook(launcher):
    """Few rows split the codebook, many do not; a share holds at least one tile."""
    assert launcher.choose_splits(512, 128, 264, 1) == 1
    assert 43 * launcher.choose_splits(43, 128, 264, 1) <= 264
    assert launcher.choose_splits(1, 128, 264, 1) == launcher.MAX_SPLITS
    assert launcher.choose_splits(1, 3, 264, 1) <= 3
    assert launcher.choose_splits(10**6, 8192, 264, 2) >= 2


@pytest.mark.gpu
def test_runs_in_a_cuda_graph_without_waiting_for_the_device():
    x, codebook = vectors(700, 32).cuda(), vectors(1000, 32, 1).cuda()
    ids = nearest_code(x, codebook, impl="triton")
    with gpu_waits("error"):
        nearest_code(x, codebook, impl="triton")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = nearest_code(x, codebook, impl="triton")
    graph.replay()
    assert torch.equal(captured, ids)
    x.copy_(vectors(700, 32, 9))
    graph.replay()
    assert torch.equal(captured, nearest_code(x, codebook, impl="triton"))


@pytest.mark.gpu
def test_another_length_compiles_nothing():
    from lavit.kernels.nearest_code.triton_kernels import prepare_kernel, rescore_kernel, screen_kernel

    codebook = vectors(16384, 32, 1).cuda()
    compiled = lambda: [len(k.device_caches[torch.cuda.current_device()][0]) for k in kernels]  # noqa: E731
    kernels = (prepare_kernel, screen_kernel, rescore_kernel)
    nearest_code(vectors(5440, 32).cuda(), codebook, impl="triton")
    before = compiled()
    for n in (1, 16, 17, 640, 65536, 100003):
        nearest_code(vectors(n, 32).cuda(), codebook, impl="triton")
    assert compiled() == before


@pytest.mark.gpu
def test_more_scores_than_fit_32_bits_in_bounded_memory():
    """200 003 x 16384 > 2^31: what it needs beyond its inputs is O(n + K D), not the 13 GB of the scores."""
    x, codebook = vectors(200003, 32, dtype=torch.float32).cuda(), vectors(16384, 32, 1).cuda()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ids = nearest_code(x, codebook, impl="triton")
    assert torch.cuda.max_memory_allocated() - before < 200003 * 128 + 16384 * 32 * 4
    for start in range(0, 200003, 20011):
        rows = slice(start, start + 64)
        assert_exact(ids[rows], x[rows], codebook, "cosine", True)
